//! Who subscribed to what with wildcards. Floor 2: imports `ids` and `topic`.
//!
//! The router inserts and removes on SUBSCRIBE and UNSUBSCRIBE, and asks for the matches of a topic
//! when it compiles a route. Exact subscriptions are not here: the shard of their topic owns them.

pub use subscribers::Subscribers;
pub use trie::Trie;

mod subscribers;
mod trie;
