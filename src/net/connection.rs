//! One connection from CONNACK to its end: the only loop in which bytes, clock, session and router
//! meet. Floor 5, called by `net::listener`.
//!
//! # One turn
//!
//! Take the mail; read what the socket has and hand every packet to the session; send one batch per
//! touched shard; let the session fill the output; write it. A poll makes at most [`TURNS_MAX`] turns, so
//! that one flooding client does not keep the worker from the others.
//!
//! # Invariants
//!
//! - Nothing is read while a shard's channel is full or the client does not take its answers: TCP
//!   pushes back. Mail is always taken, so a takeover or shutdown is seen by a stuck client too.
//! - An idle connection owns no buffer: both belong to the worker thread.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use crate::codec::{Publish, decode, frame_len, header_len};
use crate::ids::LogPosition;
use crate::metrics::DropReason;
use crate::net::pace::{Pace, Pause, PublishRates};
use crate::net::peer::{self, Entrance};
use crate::net::scratch::{READ_BYTES_MAX, Scratch};
use crate::net::tls::Certificate;
use crate::net::unsent::Unsent;
use crate::router::Router;
use crate::router::links::Links;
use crate::router::mailbox::{Inbox, Mail};
use crate::router::registry::{Claim, Parked};
use crate::router::shard::{Command, Publication};
use crate::session::{CloseReason, Output, Place, Session};

/// Turns of one poll. More let a flooding client delay the others, fewer cost speed.
const TURNS_MAX: usize = 4;
/// Nothing is read from a client that leaves this much of our output unread.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;
/// The same while memory is short.
const SHORT_UNSENT_BYTES_MAX: usize = 64 * 1024;
/// Mails taken in one turn.
const MAILS_MAX: usize = 1024;

/// See the module comment.
pub(super) struct Connection<S> {
    /// Both ways to the client.
    pub(super) stream: S,
    /// The right to the session.
    pub(super) claim: Claim,
    /// The protocol.
    pub(super) session: Box<Session>,
    /// From the shards.
    pub(super) inbox: Inbox,
    /// To the shards.
    pub(super) links: Links,
    router: Router,
    packet_bytes_max: u32,
    /// The start of a packet whose end has not arrived.
    tail: Vec<u8>,
    /// Output that the socket did not take, or may not have yet.
    unsent: Unsent,
    timer: Option<Pin<Box<Sleep>>>,
    /// The last poll did not try to read.
    is_held_back: bool,
    /// There may be whole packets in `tail`: a full shard kept them from being taken, or those before them
    /// were enough for one turn.
    has_packets: bool,
    /// Another connection wants the session.
    is_taken_over: bool,
    /// Nothing is read for a while.
    pause: Option<Box<Pause>>,
    /// What the client may publish, if that is limited.
    pace: Option<Box<Pace>>,
    /// The settings of its listener as they are now.
    pub(super) entrance: Option<Entrance>,
    /// What it has shown before the CONNECT.
    pub(super) certificate: Certificate,
}

/// What a connection begins with.
pub(super) struct Start {
    /// The answer to the CONNECT.
    pub(super) connack: Vec<u8>,
    /// What the client sent behind its CONNECT.
    pub(super) received: Vec<u8>,
    /// Largest packet that is read.
    pub(super) packet_bytes_max: u32,
}

/// Whether a step got anything done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Progress,
    Nothing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection whose CONNECT was accepted.
    pub(super) fn new(
        stream: S,
        claim: Claim,
        parked: Parked,
        router: Router,
        start: Start,
    ) -> Self {
        let links = router.links();
        Self {
            stream,
            claim,
            session: parked.session,
            inbox: parked.inbox,
            links,
            router,
            packet_bytes_max: start.packet_bytes_max,
            tail: start.received,
            unsent: Unsent::new(start.connack),
            timer: None,
            is_held_back: false,
            has_packets: false,
            is_taken_over: false,
            pause: None,
            pace: None,
            entrance: None,
            certificate: Certificate::default(),
        }
    }

    /// Reads no more of what the client publishes than `rates` allow.
    pub(super) fn limit(&mut self, rates: PublishRates) {
        self.pace = Pace::new(rates, Instant::now());
    }

    /// Nothing is written before what was appended at `at` is safe. A [`Mail::Safe`] has to follow.
    pub(super) fn hold(&mut self, at: LogPosition) {
        self.unsent.hold(at);
    }

    /// Serves the client until one side has enough.
    pub(super) async fn run(&mut self) -> CloseReason {
        if !self.tail.is_empty()
            && let Some(reason) = self.take_received()
        {
            return reason;
        }
        std::future::poll_fn(|cx| {
            let mut scratch = Scratch::take(&self.router);
            let polled = self.poll(cx, &mut scratch);
            scratch.give_back();
            match polled {
                Poll::Pending => self.inbox.pass_on(),
                Poll::Ready(_) => self.inbox.leave(),
            }
            polled
        })
        .await
    }

    /// Handles what came in one read with the CONNECT.
    fn take_received(&mut self) -> Option<CloseReason> {
        let read = std::mem::take(&mut self.tail);
        let mut scratch = Scratch::take(&self.router);
        let out = &mut scratch.out;
        out.is_memory_short = self.router.queues().is_memory_short();
        let taken = self.take_packets(&read, Instant::now(), out);
        self.tail.extend_from_slice(read.get(taken..).unwrap_or_default());
        self.settle(out);
        self.unsent.append(&mut out.bytes);
        let close = out.close.take();
        scratch.give_back();
        close
    }

    /// What is left to be written, and the DISCONNECT that `reason` calls for. At a shutdown also
    /// what waits for the client, as far as its window goes: the publishers were told that it is
    /// in good hands.
    pub(super) fn last_words(&mut self, reason: &CloseReason) -> Vec<u8> {
        let mut bytes = self.unsent.take();
        let mut scratch = Scratch::take(&self.router);
        let out = &mut scratch.out;
        if *reason == CloseReason::ShuttingDown {
            while self.take_mail(out) == Step::Progress {}
            while self.session.fill(Instant::now, out) {
                bytes.append(&mut out.bytes);
            }
        }
        self.session.say_goodbye(reason, out);
        self.settle(out);
        bytes.append(&mut out.bytes);
        // There is a reason already, and the next user of the buffers must not find one.
        out.close = None;
        scratch.give_back();
        bytes
    }

    fn poll(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<CloseReason> {
        for _ in 0..TURNS_MAX {
            let mail = self.take_mail(&mut scratch.out);
            self.unsent.release(|at| self.router.is_safe(at));
            self.hold_back(&mut scratch.out);
            let read = self.poll_read(cx, scratch);
            let out = &mut scratch.out;
            if self.is_taken_over {
                // Only now: the client may have said DISCONNECT here before it connected anew.
                out.close.get_or_insert(CloseReason::TakenOver);
            }
            let was_blocked = !self.unsent.is_empty();
            let more = !was_blocked && out.close.is_none() && self.session.fill(Instant::now, out);
            self.settle(out);
            // What `fill` asked of the shards must have a waker, too, if they are full.
            let held_by_shards = self.links.poll_flush(cx).is_pending();
            if let Err(error) = self.poll_write(cx, &mut out.bytes) {
                out.close.get_or_insert(CloseReason::Lost(error.to_string()));
            }
            if let Some(reason) = out.close.take() {
                return Poll::Ready(reason);
            }
            let can_go_on = (more || was_blocked) && self.unsent.is_empty();
            // A read that was held back registered no waker: try again as soon as the cause is gone.
            let may_read = self.is_held_back
                && !held_by_shards
                && !self.has_much_unsent(out.is_memory_short)
                && self.pause.is_none();
            if can_go_on || may_read || mail == Step::Progress || read == Step::Progress {
                continue;
            }
            if self.poll_timer(cx, out) == Step::Nothing && self.inbox.poll_ready(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(reason) = out.close.take() {
                return Poll::Ready(reason);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_mail(&mut self, out: &mut Output) -> Step {
        let mut taken = 0;
        let mut may_have_expired = false;
        while taken < MAILS_MAX
            && let Some(mail) = self.inbox.try_next()
        {
            taken += 1;
            match mail {
                Mail::Delivery(delivery) => self.session.handle_delivery(delivery, out),
                Mail::Accepted { turn, unmatched } => {
                    self.session.handle_accepted(turn, unmatched, out);
                }
                Mail::Refused { turn, refused } => self.session.handle_refused(turn, refused),
                Mail::MakeRoom => {
                    let (messages, bytes) = self.inbox.mailbox().excess();
                    self.session.make_room(messages, bytes, out);
                }
                Mail::PartDone { token, parts_due, replay } => {
                    self.session.handle_part_done(token, parts_due, replay, out);
                }
                Mail::Chunk { deliveries, rest } => {
                    for delivery in deliveries {
                        self.session.handle_delivery(delivery, out);
                    }
                    self.session.handle_chunk(rest);
                }
                Mail::TakenOver { ticket } if ticket > self.claim.ticket() => {
                    self.is_taken_over = true;
                }
                Mail::TakenOver { .. } => (),
                Mail::Fetched { fetched, lost } => {
                    self.session.handle_fetched(fetched, lost, out);
                }
                // The gates are looked at whenever there was mail.
                Mail::Safe => (),
                Mail::Expire => may_have_expired = true,
                Mail::UsersChanged(common) => {
                    let (known, anonymous) = peer::who_may_stay(self.entrance.as_ref(), common);
                    self.session.handle_users_changed(&*known, anonymous, out);
                    let refusal = || self.certificate.check(self.entrance.as_ref());
                    out.close = out.close.take().or_else(refusal);
                }
                Mail::Rights(rights) => self.session.set_rights(rights),
                Mail::ShuttingDown => drop(out.close.get_or_insert(CloseReason::ShuttingDown)),
            }
        }
        if may_have_expired {
            let mailbox = self.inbox.mailbox();
            mailbox.forget_expiry();
            // Mail that came meanwhile was perhaps not announced any more.
            if self.session.drop_expired(Instant::now(), out) || !self.inbox.is_empty() {
                mailbox.expect_expiry();
            }
        }
        if taken == 0 { Step::Nothing } else { Step::Progress }
    }

    /// One read, if there may be one, and everything that it brought.
    fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Step {
        let Scratch { read, out, .. } = scratch;
        out.is_memory_short = self.router.queues().is_memory_short();
        self.is_held_back = self.links.poll_flush(cx).is_pending()
            || self.has_much_unsent(out.is_memory_short)
            || self.is_pausing(cx, out);
        if out.close.is_some() || self.is_held_back {
            return Step::Nothing;
        }
        if self.has_packets {
            self.take_tail(Instant::now(), out);
            return Step::Progress;
        }
        let is_large = self.tail.len() > READ_BYTES_MAX / 2;
        if is_large && out.is_memory_short {
            // What would grow is not read until there is memory again.
            self.pause = Some(Box::new(Pause::for_memory()));
            self.is_held_back = self.is_pausing(cx, out);
            return Step::Nothing;
        }
        let stream = Pin::new(&mut self.stream);
        let result = if is_large {
            // Grows as the bytes arrive: what a packet announces is not allocated for in advance.
            self.tail.reserve(READ_BYTES_MAX.max(self.tail.len()));
            poll_read_buf(stream, cx, &mut self.tail)
        } else {
            read.clear();
            read.extend_from_slice(&self.tail);
            poll_read_buf(stream, cx, read)
        };
        let count = match result {
            Poll::Pending => return Step::Nothing,
            Poll::Ready(Ok(0)) => return lost("closed by the client without DISCONNECT", out),
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => return lost(&error.to_string(), out),
        };
        self.router.metrics().bytes_received.add(count as u64);
        let now = Instant::now();
        if is_large {
            self.take_tail(now, out);
        } else {
            let taken = self.take_packets(read, now, out);
            self.tail.clear();
            self.tail.extend_from_slice(read.get(taken..).unwrap_or_default());
            self.forget_empty_tail();
        }
        Step::Progress
    }

    /// A message of the client was refused without a word. This must not be left for the next user of the buffers.
    fn hold_back(&mut self, out: &mut Output) {
        if let Some(reason) = out.hold.take() {
            self.pause = Some(Box::new(Pause::before_end(reason)));
        }
    }

    fn is_pausing(&mut self, cx: &mut Context<'_>, out: &mut Output) -> bool {
        let Some(pause) = &mut self.pause else { return false };
        let Poll::Ready(then) = pause.poll(cx, out.is_memory_short) else { return true };
        self.pause = None;
        out.close = out.close.take().or(then);
        false
    }

    /// Takes the packets that `tail` holds.
    fn take_tail(&mut self, now: Instant, out: &mut Output) {
        let mut packets = std::mem::take(&mut self.tail);
        let taken = self.take_packets(&packets, now, out);
        packets.drain(..taken);
        self.tail = packets;
        self.forget_empty_tail();
    }

    fn forget_empty_tail(&mut self) {
        if self.tail.is_empty() {
            self.tail = Vec::new();
        }
    }

    fn has_much_unsent(&self, is_memory_short: bool) -> bool {
        let max = if is_memory_short { SHORT_UNSENT_BYTES_MAX } else { UNSENT_BYTES_MAX };
        self.unsent.len() > max
    }

    /// Hands all whole packets of `read`, which came at `now`, to the session; returns how many bytes
    /// they were. Stops early, and says so in `has_packets`, when a shard's channel is full or topic aliases
    /// have made much more of it than was read.
    fn take_packets(&mut self, read: &[u8], now: Instant, out: &mut Output) -> usize {
        let version = self.session.link().version;
        out.routes.begin(self.session.link().wire_version(), now);
        self.has_packets = false;
        let mut taken = 0;
        let mut topic = None;
        while out.close.is_none() {
            let rest = read.get(taken..).unwrap_or_default();
            let frame = match frame_len(rest, self.packet_bytes_max) {
                Ok(Some(len)) => rest.get(..len),
                Ok(None) => None,
                Err(error) => {
                    out.close.get_or_insert(error.into());
                    None
                }
            };
            let Some(frame) = frame else { break };
            if frame.first().is_some_and(|byte| byte >> 4 == 3) {
                match Publish::decode_after(frame, version, topic) {
                    Ok(publish) => {
                        topic = Some(publish.topic);
                        let place = Place {
                            frame: taken..taken + frame.len(),
                            topic_at: taken + header_len(frame).unwrap_or(0) + 2,
                        };
                        self.session.handle_publish(&publish, place, out);
                        if out.routes.is_full() {
                            let is_expanded = out.routes.is_expanded();
                            self.route(read, out);
                            self.has_packets = is_expanded || self.links.are_full();
                        }
                    }
                    Err(error) => drop(out.close.get_or_insert(error.into())),
                }
            } else {
                match decode(frame, version) {
                    Ok(packet) => self.session.handle_packet(&packet, out),
                    Err(error) => drop(out.close.get_or_insert(error.into())),
                }
                if !out.requests.is_empty() {
                    // What was published before a SUBSCRIBE reaches the shards before it.
                    self.route(read, out);
                    self.settle(out);
                    self.has_packets = self.links.are_full();
                }
            }
            taken += frame.len();
            if self.has_packets {
                break;
            }
        }
        self.route(read, out);
        if taken > 0 {
            // Whole packets count, not bytes [MQTT-3.1.2-22].
            self.session.handle_read(now);
        }
        taken
    }

    /// Ends the session's turn at the end of a read, before a request, or when the lists are long: one batch for each shard that it touched.
    fn route(&mut self, read: &[u8], out: &mut Output) {
        let turn = self.session.end_turn(out.routes.touched(), out);
        let (links, mailbox) = (&mut self.links, self.inbox.mailbox());
        out.routes.flush(read, |shard, batch| {
            let mailbox = mailbox.clone();
            links.send(shard, Command::Publish(Publication { batch, mailbox, turn }));
        });
    }

    /// Passes requests to the router and sums to the counters.
    fn settle(&mut self, out: &mut Output) {
        self.hold_back(out);
        while let Some(request) = out.requests.pop_front() {
            self.router.request(request, self.inbox.mailbox(), &mut self.links);
        }
        if !out.journal.is_empty() {
            self.write_journal(out);
        }
        let tally = std::mem::take(&mut out.tally);
        if let Some(pace) = &mut self.pace
            && tally.publishes_received > 0
        {
            let (messages, bytes) = (tally.publishes_received, tally.publish_bytes_received);
            let wait = pace.spend(messages, bytes, Instant::now());
            // The last one must come to its end.
            if let Some(wait) = wait.filter(|_| self.pause.as_ref().is_none_or(|it| !it.is_last()))
            {
                self.pause = Some(Box::new(Pause::of(wait)));
            }
        }
        let _ = self.inbox.mailbox().release(tally.released_messages, tally.released_bytes);
        let metrics = self.router.metrics();
        metrics.packets_received.add(tally.packets_received);
        metrics.packets_sent.add(tally.packets_sent);
        metrics.publishes_received.add(tally.publishes_received);
        metrics.publish_bytes_received.add(tally.publish_bytes_received);
        metrics.publishes_sent.add(tally.publishes_sent);
        metrics.publish_bytes_sent.add(tally.publish_bytes_sent);
        metrics.dropped(DropReason::PacketTooLarge, tally.too_large);
        metrics.dropped(DropReason::Expired, tally.expired);
        metrics.dropped(DropReason::RefusedBySubscriber, tally.refused);
        metrics.dropped(DropReason::NotAuthorized, tally.not_authorized);
        metrics.dropped(DropReason::Unreadable, tally.unreadable);
        metrics.dropped(DropReason::QueueEvicted, tally.evicted);
        metrics.dropped(DropReason::PayloadFormatInvalid, tally.payload_format_invalid);
        metrics.dropped(DropReason::TopicTooLong, tally.topic_too_long);
        metrics.acks_unknown.add(tally.acks_unknown);
        if !out.denials.is_empty() {
            self.router.settle_denials(self.inbox.mailbox(), &tally, &mut out.denials);
        }
        if tally.subscriptions != 0 {
            metrics.subscriptions.add(tally.subscriptions);
        }
    }

    /// Hands the session's records to the log. If the client may not hear of it before, everything from here on
    /// waits: bytes go out in their order.
    fn write_journal(&mut self, out: &mut Output) {
        let mailbox = self.inbox.mailbox();
        if let Some(at) = self.router.write_journal(out, mailbox) {
            self.unsent.hold_the_rest(at);
        }
    }

    /// Writes what was left and then `bytes`; keeps what the stream does not take.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let written = self.unsent.poll_write(&mut self.stream, cx, bytes)?;
        self.router.metrics().bytes_sent.add(written as u64);
        // TLS and WebSocket may hold some of it, at most 64 KiB and a control frame; TCP holds nothing.
        let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) else { return Ok(()) };
        flushed
    }

    /// The timer runs to the deadline that was right when it was set. Only when it fires is it set
    /// to the present one: a busy client costs no timer operations.
    fn poll_timer(&mut self, cx: &mut Context<'_>, out: &mut Output) -> Step {
        loop {
            let deadlines = [self.session.poll_timeout(), self.certificate.poll_timeout()];
            let Some(deadline) = deadlines.into_iter().flatten().min() else {
                return Step::Nothing;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
            if timer.as_mut().poll(cx).is_pending() {
                return Step::Nothing;
            }
            if self.is_held_back {
                // We do not listen, so silence proves nothing.
                self.session.handle_read(Instant::now());
            }
            let now = Instant::now();
            self.session.handle_timeout(now, out);
            out.close = out.close.take().or_else(|| self.certificate.handle_timeout(now));
            if out.close.is_some() {
                return Step::Progress;
            }
            self.timer = None;
        }
    }
}

fn lost(why: &str, out: &mut Output) -> Step {
    out.close.get_or_insert(CloseReason::Lost(why.to_owned()));
    Step::Progress
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::codec::Delivery as Flow;
    use crate::codec::{Connect, Packet, PropertiesBuf, Property};
    use crate::ids::{ClientId, ProtocolVersion};
    use crate::message::TopicHasher;
    use crate::metrics::Metrics;
    use crate::router::keeper::RetainedLimits;
    use crate::router::mailbox::{Home, QueueLimits};
    use crate::router::sharing::Strategy;
    use crate::session::{Limits, negotiate};

    const LIMITS: Limits =
        Limits { packet_bytes_max: 100_000, topic_alias_max: 1, ..Limits::OF_TESTS };

    /// Eight bytes with an alias may be 64 KiB of work, and a read thousands of these.
    #[tokio::test]
    async fn read_whose_aliases_make_it_much_larger_is_taken_bit_by_bit() {
        let topic = "t".repeat(65_000);
        let mut read = Vec::new();
        publish(&topic, &mut read);
        let first = read.len();
        (0..100).for_each(|_| publish("", &mut read));

        let (mut connection, _) = connection().await;
        let mut out = Output::new(connection.router.collector());
        let taken = connection.take_packets(&read, Instant::now(), &mut out);
        assert!((first..first + 100).contains(&taken), "{taken} of {} bytes", read.len());
        assert!(connection.has_packets, "the rest is taken in the next turn");
    }

    /// A client that says DISCONNECT and comes back at once must find what it asked for, whichever of its two
    /// connections the broker looks at first.
    #[tokio::test]
    async fn disconnect_counts_although_a_newer_connection_is_seen_before_it() {
        let ticket = u64::MAX;
        let (mut connection, mut client) = connection().await;
        client.write_all(&[0xE0, 0]).await.unwrap();
        connection.inbox.mailbox().send(Mail::TakenOver { ticket });
        assert_eq!(connection.run().await, CloseReason::Disconnected);

        let (mut connection, _client) = self::connection().await;
        connection.inbox.mailbox().send(Mail::TakenOver { ticket });
        assert_eq!(connection.run().await, CloseReason::TakenOver);
    }

    /// A message with an alias.
    fn publish(topic: &str, read: &mut Vec<u8>) {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::TopicAlias(1));
        let properties = properties.as_properties();
        let (delivery, retain) = (Flow::AtMostOnce, false);
        let publish = Publish { topic, payload: b"", properties, delivery, retain };
        Packet::Publish(publish).encode(ProtocolVersion::V5, read);
    }

    /// A connection, and its other end.
    async fn connection() -> (Connection<DuplexStream>, DuplexStream) {
        let limits = crate::router::Limits {
            queue: QueueLimits { messages_max: 10, bytes_max: 10_000 },
            retained: RetainedLimits { messages_max: 0, bytes_max: 0 },
            sharing: Strategy::RoundRobin,
        };
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let router = Router::spawn(1, limits, hasher, Arc::new(Metrics::default()), None);
        let connect = Connect { clean_start: true, ..Connect::OF_TESTS };
        let opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let claim = router.registry().claim(&opening.client_id, None).await.unwrap();
        let session = Box::new(Session::new(LIMITS, &opening, Instant::now()));
        let inbox = router.open_mailbox(Some(&opening.client_id), Home::Memory);
        let parked = Parked { session, inbox, expires_at: None, will: None };
        let start = Start { connack: Vec::new(), received: Vec::new(), packet_bytes_max: 100_000 };
        let (stream, client) = tokio::io::duplex(1000);
        (Connection::new(stream, claim, parked, router, start), client)
    }
}
