//! Who subscribed to what with wildcards or in a group. Floor 2: imports `ids` and `topic`.
//!
//! The router inserts and removes on SUBSCRIBE and UNSUBSCRIBE, and asks for the matches of a topic
//! when it compiles a route. Exact subscriptions that are not shared
//! are not here: the shard of their topic owns them.

pub use group::GroupMatch;
pub use subscribers::Subscribers;
pub use trie::{Matches, Trie};

mod group;
mod subscribers;
mod trie;
