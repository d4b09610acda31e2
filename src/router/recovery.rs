//! What an earlier process has left comes back: retained messages, sessions, and what waits for them. Floor 4, part
//! of [`Router`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{error, info, warn};

use crate::access::{Action, Permission, Rights, Rule};
use crate::codec::PublishView;
use crate::ids::{ClientId, PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::{Batch, Buffer, Delivery, Kind, Piece, Run, Stored, Via, shard_of};
use crate::metrics::DropReason;
use crate::record::{Owner, OwnerRule, Record};
use crate::router::Router;
use crate::router::holder::Holder;
use crate::router::journal::append;
use crate::router::mailbox::{Home, Inbox, Mailbox};
use crate::router::registry::{Parked, WaitingWill};
use crate::router::shard::Command;
use crate::session::authentication::UserName;
use crate::session::{self, Output, Remembered, Session, Will};
use crate::store::handle::Store;
use crate::store::{
    Place, RecoveredRetained, RecoveredRun, RecoveredSent, RecoveredSession, RecoveredState,
    RecoveredWill,
};
use crate::topic::TopicFilter;

impl Router {
    /// Takes over what was recovered. Call it before anybody is served.
    pub async fn recover(&self, recovered: RecoveredState, limits: session::Limits) {
        let Some(store) = &self.store else { return };
        let (sessions, retained) = (recovered.sessions.len(), recovered.retained.len());
        self.registry.go_on_behind(SessionId(recovered.greatest_session));
        for message in recovered.retained {
            self.recover_retained(store, message).await;
        }
        let now = Instant::now();
        for session in recovered.sessions {
            self.recover_session(store, session, limits, now).await;
        }
        self.settle().await;
        let messages = self.metrics.queued_messages.value();
        if sessions + retained > 0 {
            info!(sessions, messages, retained, "went on where the broker had stopped");
        }
    }

    async fn recover_retained(&self, store: &Store, message: RecoveredRetained) {
        let RecoveredRetained { topic, place, version, qos, expires, received_at_ms } = message;
        let Some(frame) = store.read(&place) else {
            self.metrics.dropped(DropReason::Unreadable, 1);
            return append(store, &Record::RetainedGone { topic: &topic });
        };
        let Some(view) = PublishView::parse(&frame, version) else { return };
        let received_at = store.clock().instant(received_at_ms);
        let interval_s = if expires { view.message_expiry_interval_s() } else { None };
        let waited = Instant::now().saturating_duration_since(received_at);
        if interval_s.is_some_and(|interval_s| u64::from(interval_s) <= waited.as_secs()) {
            self.metrics.dropped(DropReason::Expired, 1);
            return append(store, &Record::RetainedGone { topic: &topic });
        }
        let run = Run {
            hash: self.hasher.hash(topic.as_bytes()),
            offset: 0,
            len: frame.len() as u32,
            count: 1,
            topic_at: view.header_len as u32 + 2,
            topic_len: view.topic.len() as u16,
            qos,
            retain: true,
            expires,
        };
        let batch = Batch { frames: frame.clone(), runs: vec![run], version, received_at };
        if let Some(shard) = self.shards.get(shard_of(run.hash, self.shards.len())) {
            shard.send(Command::Keep(batch)).await;
        }
    }

    async fn recover_session(
        &self,
        store: &Store,
        recovered: RecoveredSession,
        limits: session::Limits,
        now: Instant,
    ) {
        let client_id = ClientId::new(&recovered.client_id);
        let RecoveredSession { session, expiry_s, left_at_ms, .. } = recovered;
        let left_at = left_at_ms.map_or(now, |ms| store.clock().instant(ms));
        if left_at_ms.is_none() {
            // It was connected until the crash: its time counts from here, also after the next one.
            let at_ms = store.clock().epoch_ms(now);
            let is_will_withdrawn = false;
            let record = Record::Disconnected { session, at_ms, expiry_s, is_will_withdrawn };
            append(store, &record);
        }
        let inbox = self.open_mailbox_of(session, Some(&client_id), Home::Log);
        inbox.mailbox().set_connected(false);
        let mut holder = recovered.owner.as_deref().map(holder).unwrap_or_default();
        holder.rights = self.rights_of_holder(&holder, &client_id);
        let user = holder.user.clone();
        inbox.mailbox().set_holder(holder);
        let subscriptions = parse_filters(&recovered);
        let mut sent: Vec<(PacketId, Delivery)> = Vec::new();
        for RecoveredSent { first_id, run } in &recovered.sent {
            match store.read(&run.place) {
                Some(frames) => sent.push((*first_id, delivery(run, frames, store))),
                None => self.give_up(session, run, store),
            }
        }
        let remembered = Remembered {
            session,
            expiry_s,
            filters: subscriptions.iter().map(|(filter, _)| filter.clone()).collect(),
            accepted: recovered.accepted,
            sent,
            awaits_pubcomp: recovered.awaits_pubcomp,
        };
        let mut parked_session = Box::new(Session::remembered(limits, remembered, left_at));
        self.metrics.sessions.add(1);
        self.metrics.subscriptions.add(subscriptions.len() as i64);
        let mut out = Output::new(self.collector());
        for run in &recovered.waiting {
            self.wait_again(run, store, &mut parked_session, inbox.mailbox(), &mut out);
        }
        self.settle_away(&mut out, inbox.mailbox());
        // Behind what waits already: what comes from now on comes later.
        self.subscribe_again(subscriptions, &inbox).await;
        let expires_at = parked_session.expiry().ends_at(left_at);
        let will = recovered.will.as_ref().and_then(will).map(|will| {
            let due_at = will.due_at(left_at, expires_at);
            Box::new(WaitingWill { will, due_at })
        });
        let parked = Parked { session: parked_session, inbox, expires_at, will };
        match self.registry.claim(&client_id, user.as_ref()).await {
            Ok(mut claim) => {
                // The end of an earlier session of this client was not written any more.
                if let Some(earlier) = claim.take(&self.registry) {
                    self.end_parked(earlier).await;
                }
                claim.park(parked, &self.registry);
            }
            // Nobody is served yet.
            Err(error) => warn!(client = %client_id, %error, "session cannot be recovered"),
        }
    }

    async fn subscribe_again(
        &self,
        subscriptions: Vec<(TopicFilter, crate::message::Grant)>,
        inbox: &Inbox,
    ) {
        let mailbox = inbox.mailbox();
        let mut links = self.links();
        let with_nothing = |(filter, grant)| (filter, grant, session::Retained::Skip);
        let filters = subscriptions.into_iter().map(with_nothing).collect();
        // Nobody waits for the answers of token 0: no request has been made.
        self.subscribe(0, filters, mailbox, &mut links);
        std::future::poll_fn(|cx| links.poll_flush(cx)).await;
    }

    /// Messages that were not sent wait where they are. They were accepted, so they wait also if a limit is lower now.
    fn wait_again(
        &self,
        run: &RecoveredRun,
        store: &Store,
        session: &mut Session,
        mailbox: &Mailbox,
        out: &mut Output,
    ) {
        let count = run.place.count.into();
        if let Some(stored) = stored(run) {
            mailbox.charge(count, run.place.len as usize);
            return session.handle_stored(stored);
        }
        let Some(frames) = store.read(&run.place) else {
            return self.give_up(mailbox.session(), run, store);
        };
        let delivery = delivery(run, frames, store);
        mailbox.charge(count, delivery.held_bytes);
        if delivery.expires {
            mailbox.expect_expiry();
        }
        session.handle_delivery(delivery, out);
    }

    /// Messages that cannot be read are not waited for.
    fn give_up(&self, session: SessionId, run: &RecoveredRun, store: &Store) {
        self.metrics.dropped(DropReason::Unreadable, run.place.count.into());
        append(store, &Record::Done { session, span: run.place.span() });
    }
}

/// Whose the session was; its rights have to be made out. What cannot be read opens nothing: a rule could be the one that
/// denies, so then all is denied, and a session whose owner is not known is nobody's, for no user is without a name.
fn holder(mut row: &[u8]) -> Holder {
    let Some(Owner { user, rules }) = Owner::decode(&mut row) else {
        error!("whose a session is cannot be read: nobody gets it, and nothing comes into it");
        return Holder { user: Some(UserName::new("")), rules: nothing(), ..Holder::default() };
    };
    let rule = |rule: &OwnerRule<'_>| {
        let permission = if rule.denies { Permission::Deny } else { Permission::Allow };
        let action = match (rule.is_publish, rule.is_subscribe) {
            (true, true) => Action::All,
            (true, false) => Action::Publish,
            (false, _) => Action::Subscribe,
        };
        Some(Rule { permission, action, filter: TopicFilter::parse(rule.filter).ok()? })
    };
    let rules: Option<Arc<[Rule]>> = rules.iter().map(rule).collect();
    Holder {
        user: user.map(UserName::new),
        rules: rules.unwrap_or_else(nothing),
        rights: Rights::UNRESTRICTED,
    }
}

/// Rules that allow nothing.
fn nothing() -> Arc<[Rule]> {
    let filters = ["#", "$SYS/#"].into_iter().filter_map(|text| TopicFilter::parse(text).ok());
    let deny = |filter| Rule { permission: Permission::Deny, action: Action::All, filter };
    filters.map(deny).collect()
}

fn parse_filters(recovered: &RecoveredSession) -> Vec<(TopicFilter, crate::message::Grant)> {
    let parse = |(text, grant): &(Box<str>, crate::message::Grant)| {
        // It was one when it was written.
        TopicFilter::parse(text).ok().map(|filter| (filter, *grant))
    };
    recovered.subscriptions.iter().filter_map(parse).collect()
}

/// One piece: the messages of `run`, whose frames are `frames`.
fn delivery(run: &RecoveredRun, frames: Bytes, store: &Store) -> Delivery {
    let RecoveredRun { place, version, qos, retain, expires, received_at_ms, .. } = *run;
    let share = run.share.as_ref().and_then(|share| TopicFilter::parse(share).ok());
    let via = Via { identifiers: run.identifiers.clone(), share };
    let has_via = !via.identifiers.is_empty() || via.share.is_some();
    let published = PublishView::parse(&frames, version);
    let (frame_qos, frame_retain) =
        published.map_or((Qos::AtMostOnce, false), |view| (view.qos(), view.retain()));
    let piece = Piece {
        buffer: 0,
        offset: 0,
        len: frames.len() as u32,
        count: place.count,
        version,
        frame_qos,
        frame_retain,
        qos,
        retain,
        expires,
        via: u32::from(has_via),
        record: 1,
        first: place.first,
    };
    let received_at = store.clock().instant(received_at_ms);
    let vias = if has_via { vec![Arc::new(via)] } else { Vec::new() };
    let buffers = vec![Buffer { frames, received_at }];
    let mut delivery = Delivery::new(Kind::Acknowledged, buffers, vec![piece], vias);
    delivery.logged_from = place.at;
    delivery
}

/// The messages of `run`, if they may stay in the log.
fn stored(run: &RecoveredRun) -> Option<Stored> {
    let Place { at, first, count, offset, len, skip } = run.place;
    let RecoveredRun { version, qos, retain, expires, .. } = *run;
    let is_plain = !expires && run.identifiers.is_empty() && run.share.is_none();
    is_plain.then_some(Stored { at, first, count, offset, len, skip, version, qos, retain })
}

fn will(recovered: &RecoveredWill) -> Option<Will> {
    let RecoveredWill { frame, version, delay_s } = recovered;
    let view = PublishView::parse(frame, *version)?;
    Some(Will {
        frame: frame.clone(),
        version: *version,
        topic: std::str::from_utf8(view.topic).ok()?.into(),
        qos: view.qos(),
        retain: view.retain(),
        expires: *version == ProtocolVersion::V5 && view.message_expiry_interval_s().is_some(),
        delay: Duration::from_secs((*delay_s).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Authorizer;

    fn row(filter: &str) -> Vec<u8> {
        let rule = OwnerRule { denies: false, is_publish: true, is_subscribe: true, filter };
        let mut row = Vec::new();
        Owner { user: Some("anna"), rules: vec![rule] }.encode(&mut row);
        row
    }

    fn may_receive(holder: &Holder) -> bool {
        let client = ClientId::new("c");
        let user = holder.user.as_ref().map(UserName::as_str);
        let rights = Authorizer::default().rights(user, &client, &holder.rules);
        rights.may_receive("a").is_allowed()
    }

    #[test]
    fn owner_or_rule_that_cannot_be_read_opens_nothing() {
        let good = holder(&row("a"));
        assert_eq!(good.user, Some(UserName::new("anna")));
        assert!(may_receive(&good));
        let wrong_rule = holder(&row("a/#/b"));
        assert_eq!(wrong_rule.user, Some(UserName::new("anna")));
        assert!(!may_receive(&wrong_rule));
        let row = row("a");
        let cut = holder(&row[..row.len() - 1]);
        assert_eq!(cut.user, Some(UserName::new("")));
        assert!(!may_receive(&cut));
    }
}
