//! Messages that wait for a client are left to the log, and read again when their turn comes. Floor 4, part of
//! [`Router`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::Stored;
use crate::router::Router;
use crate::router::handover::take_mail;
use crate::router::mailbox::{Mail, Mailbox};
use crate::router::registry::{Parked, Visit};
use crate::session::Output;
use crate::store::Place;

/// When a session is looked at again that was changing hands.
const SECOND_LOOK: Duration = Duration::from_millis(10);

impl Router {
    /// Reads messages for a session, on a thread that may wait for the disk.
    pub(super) fn fetch(&self, wanted: Vec<Stored>, mailbox: &Arc<Mailbox>) {
        // Only sessions with a store have anything in it.
        let Some(store) = self.store.clone() else { return };
        let mailbox = mailbox.clone();
        tokio::task::spawn_blocking(move || {
            let now = Instant::now();
            let place_of = |stored: &Stored| {
                let Stored { at, first, count, offset, len, skip, .. } = *stored;
                Place { at, first, count, offset, len, skip }
            };
            let places: Vec<Place> = wanted.iter().map(place_of).collect();
            let (mut fetched, mut lost) = (Vec::with_capacity(wanted.len()), Vec::new());
            for (stored, frames) in wanted.into_iter().zip(store.read_all(&places)) {
                match frames {
                    Some(frames) => fetched.push(stored.delivery(frames, now)),
                    None => lost.push(stored),
                }
            }
            // The session waits for what could not be read, until the broker ends, which it is about to.
            if !store.has_failed() {
                mailbox.send(Mail::Fetched { fetched, lost });
            }
        });
    }

    /// Takes what is in the log, too, out of the mailboxes of clients that are away, for as long as it is polled. For
    /// one task.
    pub async fn relieve_mailboxes(&self) {
        while let Ok(client_id) = self.crowded.1.recv_async().await {
            let visit = self.registry.visit(&client_id, |Parked { session, inbox, .. }| {
                let mailbox = inbox.mailbox();
                mailbox.forget_crowd();
                let mut out = Output::new(self.collector());
                take_mail(session, inbox, &mut out);
                self.settle_away(&mut out, mailbox);
            });
            match visit {
                // It is changing hands. This router has the receiver, too.
                Visit::InUse(None) => {
                    let _ = self.crowded.0.send(client_id);
                    tokio::time::sleep(SECOND_LOOK).await;
                }
                // Its owner takes the mail, or leaves; then the next one counts anew.
                Visit::InUse(Some(_)) | Visit::Done | Visit::NoSession => {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
