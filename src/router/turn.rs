//! What one turn of a shard has for the sessions. Floor 4, owned by `router::shard`.

use std::sync::Arc;

use crate::codec::next_frame;
use crate::ids::{LogPosition, Qos, SessionId};
use crate::message::{Batch, Buffer, Delivery, Grant, Kind, Logged, Piece, Run, Via};
use crate::metrics::{DropReason, Shortage};
use crate::record::{Messages, MessagesWriter, Recipient, Record, Span};
use crate::router::mailbox::{Home, Mailbox};
use crate::router::queues::Policy;
use crate::router::route::{Route, Target};
use crate::router::sharing::{Group, Member, Room, Strategy};
use crate::topic::TopicFilter;

/// Outboxes by index, and which of them this turn has put something into.
pub(super) struct Turn {
    pub(super) outboxes: Vec<Outbox>,
    touched: Vec<u32>,
    /// Pieces in all outboxes.
    pieces: usize,
    /// Number of the batch that is being routed; never used twice.
    batch: u64,
    strategy: Strategy,
    /// For the log.
    records: Vec<u8>,
    /// The record of the run that is being routed, where it needs one.
    open: Option<MessagesWriter>,
    /// What has no room is left out: nobody asked whether there is any before the batch was accepted.
    leaves_out: bool,
}

impl Turn {
    /// Nothing yet.
    pub(super) fn new(strategy: Strategy) -> Self {
        Self {
            outboxes: Vec::new(),
            touched: Vec::new(),
            pieces: 0,
            batch: 0,
            strategy,
            records: Vec::new(),
            open: None,
            leaves_out: false,
        }
    }

    /// Sessions that get something.
    pub(super) fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Pieces for all of them.
    pub(super) fn pieces(&self) -> usize {
        self.pieces
    }

    /// What is added from now on is of another batch. If nobody `asks` for room before its messages are accepted,
    /// they are left out where there is none.
    pub(super) fn begin_batch(&mut self, asks: bool) {
        self.batch += 1;
        self.leaves_out = !asks;
    }

    /// How many messages of `run`, from its first on, all sessions on its `route` have room for; why, if that is
    /// none. A shared subscription has room if one of its members has.
    pub(super) fn room(
        &self,
        run: &Run,
        route: &Route,
        publisher: SessionId,
    ) -> Result<u32, Shortage> {
        let mut count = run.count;
        for target in &route.targets {
            let target = match &target.own {
                Some(own) if self.is_for(target, publisher) => own,
                None if target.grant.no_local && self.is_for(target, publisher) => continue,
                _ => target,
            };
            let outbox = self.outboxes.get(target.outbox as usize);
            let outbox = outbox.filter(|_| target.grant.qos != Qos::AtMostOnce);
            if let Some(left) = outbox.and_then(Outbox::messages_left) {
                count = count.min(u32::try_from(left?).unwrap_or(u32::MAX));
            }
        }
        for group in &route.groups {
            let left = self.room_of_group(group, run.qos)?;
            count = count.min(u32::try_from(left).unwrap_or(u32::MAX));
        }
        Ok(count)
    }

    /// For how many messages of `qos` the members of `group` have room together; why, if that is none. Nothing is
    /// promised to those who get them at QoS 0.
    fn room_of_group(&self, group: &Group, qos: Qos) -> Result<u64, Shortage> {
        let (mut left, mut full) = (0_u64, None);
        for target in &group.members {
            let room = self.as_member(target, qos).room;
            if target.grant.qos == Qos::AtMostOnce && room >= Room::Away {
                return Ok(u64::MAX);
            }
            let outbox = self.outboxes.get(target.outbox as usize);
            let outbox = outbox.filter(|_| target.grant.qos != Qos::AtMostOnce);
            match room {
                Room::Full => full = full.or(outbox),
                _ => left = left.saturating_add(outbox.map_or(0, Outbox::messages_to_go)),
            }
        }
        match full.filter(|_| left == 0).and_then(Outbox::messages_left) {
            Some(left) => left,
            None if left == 0 => Ok(u64::MAX),
            None => Ok(left),
        }
    }

    /// What has to be in the log.
    pub(super) fn records(&mut self) -> &mut Vec<u8> {
        &mut self.records
    }

    /// The run that is routed next has these messages, and durable sessions may be among those that get it.
    pub(super) fn begin_record(&mut self, messages: &Messages<'_>) {
        self.open = Some(MessagesWriter::begin(messages, &mut self.records));
    }

    /// The run is routed: its record stays if anybody needs it. Returns whether it does.
    pub(super) fn end_record(&mut self, is_retained: bool) -> bool {
        let Some(record) = self.open.take() else { return false };
        let is_needed = is_retained || record.targets() > 0;
        if is_needed {
            record.end(&mut self.records);
        } else {
            self.records.truncate(record.start());
        }
        is_needed
    }

    /// `run` of `batch` goes to each of `targets`. Returns how many messages were left out.
    pub(super) fn add_all(
        &mut self,
        run: &Run,
        targets: &[Target],
        batch: &Batch,
        publisher: SessionId,
    ) -> u64 {
        let mut left_out = 0;
        let leaves_out = self.leaves_out && run.qos != Qos::AtMostOnce;
        for target in targets {
            if leaves_out && self.must_leave_out(run, target) {
                left_out += u64::from(run.count);
                continue;
            }
            match &target.own {
                Some(own) if self.is_for(target, publisher) => self.add(run, own, batch, None),
                None if target.grant.no_local && self.is_for(target, publisher) => (),
                _ => self.add(run, target, batch, None),
            }
        }
        left_out
    }

    /// Whether the session of `target` would have to take `run` without having room for it.
    fn must_leave_out(&self, run: &Run, target: &Target) -> bool {
        let outbox = self.outboxes.get(target.outbox as usize);
        let mailbox = outbox.and_then(|outbox| outbox.mailbox.as_ref());
        run.qos.min(target.grant.qos) != Qos::AtMostOnce
            && mailbox.is_some_and(|mailbox| mailbox.policy() == Policy::Reject)
            && outbox.is_some_and(|it| it.shortage().is_some())
    }

    /// Each message of `run` goes to one member of `group`. If `must_go` those that have no room are given some all the
    /// same, where the policy is to drop the oldest or the messages have been accepted. Returns those that nobody can
    /// take, and why.
    pub(super) fn share(
        &mut self,
        run: &Run,
        group: &Group,
        batch: &Batch,
        publisher: SessionId,
        must_go: bool,
    ) -> Option<(Run, DropReason)> {
        let strategy = self.strategy;
        let key = match strategy {
            Strategy::StickyPublisher => publisher.0,
            _ => run.hash,
        };
        let stretch = group.stretch(strategy, run.count);
        let mut rest = Some(*run);
        let mut first = 0;
        while let Some(run) = rest {
            let member = |target: &Target| self.as_member(target, run.qos);
            let target = group.pick(strategy, key, member);
            let target = target.or_else(|| {
                let eager = |it: &Target| self.as_eager(member(it), it, run.qos);
                if must_go { group.pick(strategy, key, eager) } else { None }
            });
            let Some(target) = target else { break };
            let (part, others) = cut(run, stretch, batch);
            self.add(&part, target, batch, Some(first));
            first += part.count;
            rest = others;
        }
        let run = rest?;
        let is_offline = |it| self.as_member(it, run.qos).room == Room::Offline;
        let reason = match group.members.iter().all(is_offline) {
            true => DropReason::Offline,
            false => DropReason::QueueFull,
        };
        Some((run, reason))
    }

    /// Whether `target` is `session`.
    pub(super) fn is_for(&self, target: &Target, session: SessionId) -> bool {
        self.outboxes.get(target.outbox as usize).is_some_and(|outbox| outbox.is_for(session))
    }

    /// Whether the client of `target` is there.
    pub(super) fn is_connected(&self, target: &Target) -> bool {
        let outbox = self.outboxes.get(target.outbox as usize);
        outbox.and_then(|it| it.mailbox.as_ref()).is_some_and(|mailbox| mailbox.is_connected())
    }

    /// Puts what there is into the mailboxes; `wake` is called for each and has to ring it. The records of
    /// this turn are in the log from `logged_from` on; what has to follow them is in [`Turn::records`] then.
    pub(super) fn flush(&mut self, logged_from: LogPosition, mut wake: impl FnMut(&Mailbox)) {
        self.records.clear();
        for index in self.touched.drain(..) {
            if let Some(outbox) = self.outboxes.get_mut(index as usize)
                && let Some(mailbox) = outbox.flush(logged_from, &mut self.records)
            {
                wake(mailbox);
            }
        }
        self.pieces = 0;
    }

    /// `run` is a part of the run that is being routed if `first` says where it begins.
    fn add(&mut self, run: &Run, target: &Target, batch: &Batch, first: Option<u32>) {
        let Some(outbox) = self.outboxes.get_mut(target.outbox as usize) else { return };
        if outbox.is_empty() {
            self.touched.push(target.outbox);
        }
        let mut record = 0;
        if let Some(open) = &mut self.open
            && let Some(recipient) = outbox.as_recipient(run, target, first)
        {
            open.add(&recipient, &mut self.records);
            record = open.start() as u32 + 1;
        }
        outbox.add(run, target, batch, self.batch, (record, first.unwrap_or(0)));
        self.pieces += 1;
    }

    fn as_member(&self, target: &Target, qos: Qos) -> Member {
        let outbox = self.outboxes.get(target.outbox as usize);
        let member = outbox.and_then(|outbox| outbox.as_member(qos.min(target.grant.qos)));
        // Routes lead to outboxes that have an owner.
        member.unwrap_or(Member { session: SessionId(0), room: Room::Full, load: 0 })
    }

    /// `member` as one that has room after all, if its oldest message goes for each that comes, or the messages, of
    /// `qos`, have been accepted: others of them may have taken the room that there was.
    fn as_eager(&self, member: Member, target: &Target, qos: Qos) -> Member {
        let outbox = self.outboxes.get(target.outbox as usize);
        let mailbox = outbox.and_then(|outbox| outbox.mailbox.as_ref());
        let takes_more = |it: &&Arc<Mailbox>| match it.policy() {
            Policy::DropOldest => true,
            Policy::Reject => !self.leaves_out && qos.min(target.grant.qos) != Qos::AtMostOnce,
            Policy::DropNewest => false,
        };
        match mailbox.filter(takes_more).filter(|_| member.room == Room::Full) {
            Some(mailbox) if mailbox.is_connected() => Member { room: Room::Here, ..member },
            Some(_) => Member { room: Room::Away, ..member },
            None => member,
        }
    }
}

/// The first `count` messages of `run`, and the others.
pub(super) fn cut(run: Run, count: u32, batch: &Batch) -> (Run, Option<Run>) {
    if count >= run.count {
        return (run, None);
    }
    let frames = batch.frames.get(run.offset as usize..).unwrap_or_default();
    let mut len = 0;
    for _ in 0..count {
        len += frames.get(len..).and_then(next_frame).unwrap_or(0);
    }
    let len = len as u32;
    let others =
        Run { offset: run.offset + len, len: run.len - len, count: run.count - count, ..run };
    (Run { len, count, ..run }, Some(others))
}

/// What this turn has for one session.
#[derive(Default)]
pub(super) struct Outbox {
    mailbox: Option<Arc<Mailbox>>,
    unacknowledged: Pile,
    acknowledged: Pile,
    /// Messages in both piles.
    messages: u64,
    /// Their bytes.
    bytes: usize,
}

#[derive(Default)]
struct Pile {
    buffers: Vec<Buffer>,
    /// Number of the batch whose frames are the last of `buffers`.
    newest: u64,
    pieces: Vec<Piece>,
    vias: Vec<Arc<Via>>,
}

impl Outbox {
    /// An outbox for whoever reads `mailbox`.
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox: Some(mailbox), ..Self::default() }
    }

    fn is_for(&self, session: SessionId) -> bool {
        self.mailbox.as_ref().is_some_and(|mailbox| mailbox.session() == session)
    }

    fn is_empty(&self) -> bool {
        self.unacknowledged.pieces.is_empty() && self.acknowledged.pieces.is_empty()
    }

    /// Whether the session could take another message of `qos`, and what it has already.
    fn as_member(&self, qos: Qos) -> Option<Member> {
        let mailbox = self.mailbox.as_ref()?;
        let is_connected = mailbox.is_connected();
        let room = if !is_connected && qos == Qos::AtMostOnce {
            Room::Offline
        } else if self.shortage().is_some() {
            Room::Full
        } else if is_connected {
            Room::Here
        } else {
            Room::Away
        };
        Some(Member { session: mailbox.session(), room, load: mailbox.held_bytes() + self.bytes })
    }

    /// Why the session has no room for another message.
    fn shortage(&self) -> Option<Shortage> {
        self.mailbox.as_ref()?.shortage(self.messages, self.bytes)
    }

    /// For how many messages it has room; why, if that is none.
    fn messages_left(&self) -> Option<Result<u64, Shortage>> {
        let mailbox = self.mailbox.as_ref()?;
        let shortage = self.shortage();
        if shortage == Some(Shortage::Queue) {
            mailbox.blame();
        }
        Some(shortage.map_or_else(|| Ok(self.messages_to_go()), Err))
    }

    /// For how many messages it has room, were it for their number alone.
    fn messages_to_go(&self) -> u64 {
        self.mailbox.as_ref().map_or(0, |mailbox| mailbox.messages_left(self.messages))
    }

    /// Whether its messages are in the log, too.
    pub(super) fn is_durable(&self) -> bool {
        self.mailbox.as_ref().is_some_and(|mailbox| mailbox.home() == Home::Log)
    }

    /// As the log has to know the session; `None` where it need not.
    fn as_recipient<'a>(
        &self,
        run: &Run,
        target: &'a Target,
        first: Option<u32>,
    ) -> Option<Recipient<'a>> {
        let Target { grant, via, .. } = target;
        let qos = run.qos.min(grant.qos);
        let mailbox = self.mailbox.as_ref().filter(|mailbox| mailbox.home() == Home::Log)?;
        (qos != Qos::AtMostOnce).then(|| Recipient {
            session: mailbox.session(),
            qos,
            retain: run.retain && grant.retain_as_published,
            identifiers: via.as_ref().map_or(&[], |via| &via.identifiers),
            share: via.as_ref().and_then(|via| via.share.as_ref()).map(TopicFilter::as_str),
            part: first.map(|first| (first, run.count)),
        })
    }

    /// Appends `run` of `batch`, which is number `number` of this shard, as `target` wants it. `record` says
    /// where it is in the log, see [`Piece`].
    fn add(
        &mut self,
        run: &Run,
        target: &Target,
        batch: &Batch,
        number: u64,
        (record, first): (u32, u32),
    ) {
        let Grant { qos, retain_as_published, .. } = target.grant;
        let qos = run.qos.min(qos);
        let pile = match qos {
            Qos::AtMostOnce => &mut self.unacknowledged,
            Qos::AtLeastOnce | Qos::ExactlyOnce => &mut self.acknowledged,
        };
        if pile.buffers.is_empty() || pile.newest != number {
            let (frames, received_at) = (batch.frames.clone(), batch.received_at);
            pile.buffers.push(Buffer { frames, received_at });
            pile.newest = number;
        }
        pile.pieces.push(Piece {
            buffer: (pile.buffers.len() - 1) as u32,
            offset: run.offset,
            len: run.len,
            count: run.count,
            version: batch.version,
            frame_qos: run.qos,
            frame_retain: run.retain,
            qos,
            retain: run.retain && retain_as_published,
            expires: run.expires,
            via: target.via.as_ref().map_or(0, |via| place_of(via, &mut pile.vias)),
            record,
            first,
        });
        self.messages += u64::from(run.count);
        self.bytes += run.len as usize;
    }

    /// Returns the mailbox that has it now. What that has no room for is done with in the log, too.
    fn flush(&mut self, logged_from: LogPosition, records: &mut Vec<u8>) -> Option<&Arc<Mailbox>> {
        let mailbox = self.mailbox.as_ref()?;
        let piles = [
            (Kind::Unacknowledged, &mut self.unacknowledged),
            (Kind::Acknowledged, &mut self.acknowledged),
        ];
        for (kind, pile) in piles {
            if !pile.pieces.is_empty() {
                let Pile { buffers, pieces, vias, .. } = std::mem::take(pile);
                let mut delivery = Delivery::new(kind, buffers, pieces, vias);
                delivery.logged_from = logged_from;
                if let Some(dropped) = mailbox.deliver(delivery) {
                    write_dropped(&dropped, mailbox.session(), records);
                }
            }
        }
        self.messages = 0;
        self.bytes = 0;
        Some(mailbox)
    }
}

/// The session does not wait for what was dropped.
fn write_dropped(dropped: &Delivery, session: SessionId, records: &mut Vec<u8>) {
    for (Logged { at, number }, count) in dropped.logged_runs() {
        let span = Span { at, first: number, count };
        Record::Done { session, span }.encode(records);
    }
}

/// Counted from 1.
fn place_of(via: &Arc<Via>, vias: &mut Vec<Arc<Via>>) -> u32 {
    if !vias.last().is_some_and(|last| Arc::ptr_eq(last, via)) {
        vias.push(via.clone());
    }
    vias.len() as u32
}
