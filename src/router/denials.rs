//! What the rules have denied, in the log: a line each, as many as fit into a second. Floor 4, owned by [`Router`].
//!
//! # Limits
//!
//! As many lines a second of the whole broker as [`LogRoom`] has. The first line of a later second says how many were left out. The
//! counters in `$SYS/broker/access/denied/` have all of them.

use std::time::Instant;

use tracing::warn;

use crate::ids::ClientId;
use crate::router::log_room::LogRoom;
use crate::session::Denial;
use crate::session::authentication::UserName;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Denials {
    room: LogRoom,
}

impl Denials {
    /// Logs `denial` if there is room. Nothing that came from a client goes into the log as it is.
    pub(super) fn report(&self, client: &ClientId, user: Option<&UserName>, denial: &Denial) {
        let Some(left_out) = self.room.admit(Instant::now()) else { return };
        if left_out > 0 {
            warn!(left_out, "denials were left out of the log");
        }
        let Denial { action, topic, rule } = denial;
        let user = user.map(tracing::field::display);
        warn!(%client, user, topic = %topic.escape_debug(), rule = %rule.escape_debug(), "denied: {action}");
    }
}
