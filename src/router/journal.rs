//! What is written into the log of sessions as a whole. Floor 4, part of [`Router`].
//!
//! Without a store, and of sessions that end with the process, nothing is.

use std::sync::Arc;
use std::time::Instant;

use crate::access::{Action, Permission, Rule};
use crate::ids::LogPosition;
use crate::record::{Owner, OwnerRule, Record, Terms, Will};
use crate::router::Router;
use crate::router::holder::Holder;
use crate::router::mailbox::{Home, Mail, Mailbox};
use crate::router::registry::Parked;
use crate::session::{Opening, Output};
use crate::store::handle::Store;

impl Router {
    /// Where the messages of a session live that outlives its connection.
    pub fn home_of_durable(&self) -> Home {
        if self.store.is_some() { Home::Log } else { Home::Memory }
    }

    /// Whether what was appended at `at` is safe.
    pub fn is_safe(&self, at: LogPosition) -> bool {
        self.store.as_ref().is_none_or(|store| store.is_safe(at))
    }

    /// Waits until everything that was appended is safe.
    pub async fn settle_log(&self) {
        if let Some(store) = &self.store {
            store.settle().await;
        }
    }

    /// Writes what is in the journal of a session. If its client may not hear of it before it is safe, returns where
    /// it is; [`Mail::Safe`] comes then.
    pub fn write_journal(&self, out: &mut Output, mailbox: &Arc<Mailbox>) -> Option<LogPosition> {
        let (records, holds_output) = out.journal.take();
        let store = self.store.as_ref().filter(|_| !records.is_empty())?;
        if holds_output {
            return Some(append_and_tell(store, &records, mailbox));
        }
        store.append(&records, None);
        None
    }

    /// The client is connected, and CONNACK waits for what is at the position that is returned.
    pub fn write_connected(
        &self,
        parked: &Parked,
        opening: &Opening,
        was_present: bool,
    ) -> Option<LogPosition> {
        let mailbox = parked.inbox.mailbox();
        let store = self.store.as_ref().filter(|_| mailbox.home() == Home::Log)?;
        let session = mailbox.session();
        let mut records = Vec::new();
        if !was_present {
            let client_id = opening.client_id.as_record();
            Record::SessionBegan { session, client_id }.encode(&mut records);
        }
        if let Some(owner) = owner_of(&mailbox.holder()) {
            Record::Owned { session, owner }.encode(&mut records);
        }
        let will = opening.will.as_ref().map(|will| Will {
            frame: &will.frame,
            version: will.version,
            delay_s: will.delay.as_secs().try_into().unwrap_or(u32::MAX),
        });
        let terms = Terms { expiry_s: opening.expiry.as_seconds(), will };
        Record::Connected { session, terms }.encode(&mut records);
        Some(append_and_tell(store, &records, mailbox))
    }

    /// The client has gone; if its will does not wait, it has been withdrawn or written down as published.
    pub fn write_disconnected(&self, parked: &Parked) {
        let mailbox = parked.inbox.mailbox();
        let Some(store) = self.store.as_ref().filter(|_| mailbox.home() == Home::Log) else {
            return;
        };
        let record = Record::Disconnected {
            session: mailbox.session(),
            at_ms: store.clock().epoch_ms(Instant::now()),
            expiry_s: parked.session.expiry().as_seconds(),
            is_will_withdrawn: parked.will.is_none(),
        };
        append(store, &record);
    }

    /// The will of a session has been published. Its message is in the log before this is.
    pub async fn write_will_published(&self, mailbox: &Mailbox) {
        if let Some(store) = self.store.as_ref().filter(|_| mailbox.home() == Home::Log) {
            self.settle().await;
            append(store, &Record::WillPublished { session: mailbox.session() });
        }
    }

    /// Nothing is left of a session; its will, and what went to others of its shared subscriptions, is in the log
    /// before.
    pub(super) async fn write_ended(&self, mailbox: &Mailbox) {
        if let Some(store) = self.store.as_ref().filter(|_| mailbox.home() == Home::Log) {
            self.settle().await;
            append(store, &Record::SessionEnded { session: mailbox.session() });
        }
    }
}

/// `None` where the session belongs to nobody: then it did before, too.
fn owner_of(holder: &Holder) -> Option<Owner<'_>> {
    let Holder { user, rules, .. } = holder;
    let belongs = user.is_some() || !rules.is_empty();
    belongs.then(|| Owner {
        user: user.as_ref().map(|user| user.as_str()),
        rules: rules.iter().map(owner_rule).collect(),
    })
}

fn owner_rule(rule: &Rule) -> OwnerRule<'_> {
    OwnerRule {
        denies: rule.permission == Permission::Deny,
        is_publish: matches!(rule.action, Action::Publish | Action::All),
        is_subscribe: matches!(rule.action, Action::Subscribe | Action::All),
        filter: rule.filter.as_str(),
    }
}

pub(super) fn append(store: &Store, record: &Record<'_>) {
    let mut records = Vec::new();
    record.encode(&mut records);
    store.append(&records, None);
}

fn append_and_tell(store: &Store, records: &[u8], mailbox: &Arc<Mailbox>) -> LogPosition {
    let mailbox = mailbox.clone();
    store.append(records, Some(Box::new(move || mailbox.send(Mail::Safe))))
}
