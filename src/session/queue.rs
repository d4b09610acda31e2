//! Messages that wait for the window or for room in the output. Floor 2, owned by `session::outgoing`.

use std::collections::VecDeque;
use std::time::Instant;

use crate::codec::{PublishView, next_frame};
use crate::ids::{LogPosition, ProtocolVersion, Qos, SessionId};
use crate::message::{Delivery, Logged, Piece, Stored, Undelivered, Via};
use crate::session::window::Body;
use crate::session::{OUTPUT_BYTES_MAX, Output};
use crate::topic::TopicFilter;

/// A Subscription Identifier in a PUBLISH, at most.
const IDENTIFIER_BYTES_MAX: usize = 5;

/// Bytes in memory above which what is in the log, too, is let go until its turn comes.
const MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// The same for a client that is away.
const AWAY_BYTES_MAX: usize = 64 * 1024;
/// A chunk of what was let go is fetched when less than this is left in memory.
const FETCH_BELOW_BYTES: usize = 64 * 1024;
/// Bytes of one chunk, but for the run that takes it over this.
const CHUNK_BYTES: usize = 128 * 1024;
/// Runs of one chunk.
const CHUNK_RUNS: usize = 1024;

/// Deliveries in order; the front one may be sent in part. What waits in the log only comes behind all of them.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) deliveries: VecDeque<Delivery>,
    /// Bytes of their messages.
    bytes: usize,
    /// Behind `deliveries`.
    stored: VecDeque<Waiting>,
    /// A chunk is being fetched; it comes before `stored`.
    is_fetching: bool,
    /// Pieces of the front delivery that are sent.
    sent_pieces: usize,
    /// What the front delivery was charged and its stretches were not given yet.
    charge_given: usize,
}

/// What waits behind the deliveries.
#[derive(Debug)]
enum Waiting {
    /// In the log only. Most are whole records.
    Whole { at: u64, len: u32, count: u32, how: How },
    /// In the log only.
    Part(Box<Stored>),
    /// In memory, because the log does not have all of it.
    Here(Box<Delivery>),
}

/// How to deliver messages.
#[derive(Clone, Copy, Debug)]
struct How {
    version: ProtocolVersion,
    qos: Qos,
    retain: bool,
}

impl Waiting {
    fn new(stored: Stored) -> Self {
        let Stored { at, first, count, offset, len, skip, .. } = stored;
        if (first, offset, skip) != (0, 0, 0) {
            return Self::Part(Box::new(stored));
        }
        let Stored { version, qos, retain, .. } = stored;
        let how = How { version, qos, retain };
        Self::Whole { at: at.0, len, count, how }
    }

    /// `Err` is what is in memory.
    fn stored(self) -> Result<Stored, Box<Delivery>> {
        match self {
            Self::Here(delivery) => Err(delivery),
            Self::Part(stored) => Ok(*stored),
            Self::Whole { at, len, count, how } => {
                let How { version, qos, retain } = how;
                Ok(Stored {
                    at: LogPosition(at),
                    first: 0,
                    count,
                    offset: 0,
                    len,
                    skip: 0,
                    version,
                    qos,
                    retain,
                })
            }
        }
    }
}

/// Frames of one piece that go out together.
pub(super) struct Stretch {
    /// As it was delivered.
    pub(super) piece: Piece,
    /// As the window keeps it.
    pub(super) body: Body,
}

impl Queue {
    /// Takes a delivery. What of it is in the log is let go where much waits in memory already, less of a
    /// client that `is_away`.
    pub(super) fn push(&mut self, delivery: Delivery, is_away: bool, out: &mut Output) {
        let is_behind = self.is_fetching || !self.stored.is_empty();
        let most = if is_away { AWAY_BYTES_MAX } else { MEMORY_BYTES_MAX };
        if !is_behind && self.bytes < most {
            return self.push_here(delivery);
        }
        let stored = |piece| Stored::of(&delivery, piece);
        let stored: Option<Vec<Stored>> = delivery.pieces.iter().map(stored).collect();
        match stored {
            Some(stored) => {
                out.tally.released_bytes +=
                    delivery.held_bytes.saturating_sub(delivery.piece_bytes);
                self.stored.extend(stored.into_iter().map(Waiting::new));
            }
            None if is_behind => self.stored.push_back(Waiting::Here(Box::new(delivery))),
            None => self.push_here(delivery),
        }
    }

    /// Messages of an earlier process.
    pub(super) fn push_stored(&mut self, stored: Stored) {
        self.stored.push_back(Waiting::new(stored));
    }

    /// The chunk that was asked for.
    pub(super) fn push_fetched(&mut self, fetched: Vec<Delivery>) {
        self.is_fetching = false;
        fetched.into_iter().for_each(|delivery| self.push_here(delivery));
        self.take_here();
    }

    /// What has to be fetched next, if it is time.
    pub(super) fn next_chunk(&mut self) -> Option<Vec<Stored>> {
        if self.is_fetching || self.stored.is_empty() || self.bytes >= FETCH_BELOW_BYTES {
            return None;
        }
        self.take_here();
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && chunk.len() < CHUNK_RUNS
            && let Some(waiting) = self.stored.pop_front()
        {
            match waiting.stored() {
                Ok(stored) => {
                    bytes += stored.len as usize;
                    chunk.push(stored);
                }
                Err(delivery) => {
                    self.stored.push_front(Waiting::Here(delivery));
                    break;
                }
            }
        }
        self.is_fetching = !chunk.is_empty();
        (!chunk.is_empty()).then_some(chunk)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.stored.is_empty() && !self.is_fetching
    }

    fn push_here(&mut self, delivery: Delivery) {
        self.bytes += delivery.piece_bytes;
        self.deliveries.push_back(delivery);
    }

    /// What is in memory and next comes to the deliveries.
    fn take_here(&mut self) {
        while let Some(Waiting::Here(_)) = self.stored.front() {
            if let Some(Err(delivery)) = self.stored.pop_front().map(Waiting::stored) {
                self.push_here(*delivery);
            }
        }
        if self.stored.is_empty() {
            self.stored.shrink_to(64);
        }
    }

    /// Drops what waits longest: as many messages of one run as are missing until `messages` have left, one at least.
    /// `false` where nothing waits. What is being fetched counts as on its way.
    pub(super) fn drop_oldest(
        &mut self,
        messages: u64,
        durable: Option<SessionId>,
        out: &mut Output,
    ) -> bool {
        let missing = messages.saturating_sub(out.tally.released_messages).max(1);
        let count_max = usize::try_from(missing).unwrap_or(usize::MAX);
        if self.deliveries.is_empty() && !self.is_fetching {
            self.take_here();
        }
        if let Some(Stretch { piece, body }) = self.take(count_max, out) {
            out.tally.released_bytes += body.charged_bytes;
            out.tally.evicted += u64::from(piece.count);
            if let Some(logged) = body.logged {
                out.journal.done(durable, logged, piece.count);
            }
            return true;
        }
        let Some(waiting) = self.stored.pop_front() else { return false };
        let stored = match waiting.stored() {
            Ok(stored) => stored,
            Err(delivery) => {
                delivery.logged_runs().for_each(|(it, count)| out.journal.done(durable, it, count));
                out.tally.evicted += u64::from(delivery.messages);
                out.tally.released_messages += u64::from(delivery.messages);
                out.tally.released_bytes += delivery.held_bytes;
                return true;
            }
        };
        let count = stored.count.min(count_max.try_into().unwrap_or(u32::MAX));
        out.journal.done(durable, Logged { at: stored.at, number: stored.first }, count);
        out.tally.evicted += u64::from(count);
        out.tally.released_messages += u64::from(count);
        match stored.without_first(count) {
            Some(rest) => self.stored.push_front(Waiting::new(rest)),
            None => out.tally.released_bytes += stored.len as usize,
        }
        true
    }

    /// See [`Outgoing::take_shared`].
    pub(super) fn take_shared(
        &mut self,
        are_takers: &mut dyn FnMut(&TopicFilter) -> bool,
        undelivered: &mut Vec<Undelivered>,
        out: &mut Output,
    ) {
        self.change_in_memory(|delivery| {
            let mut shares = delivery.vias.iter().filter_map(|via| via.share.as_ref());
            if !shares.any(&mut *are_takers) {
                return Some(delivery);
            }
            let (messages, held_bytes) = (delivery.messages, delivery.held_bytes);
            let (rest, mut shared) = delivery.split_shared(are_takers);
            undelivered.append(&mut shared);
            let kept = rest.as_ref().map_or((0, 0), |it| (it.messages, it.held_bytes));
            out.tally.released_messages += u64::from(messages - kept.0);
            out.tally.released_bytes += held_bytes - kept.1;
            rest
        });
    }

    /// Each delivery in memory becomes what `change` makes of it.
    fn change_in_memory(&mut self, mut change: impl FnMut(Delivery) -> Option<Delivery>) {
        self.forget_sent();
        let deliveries = std::mem::take(&mut self.deliveries);
        self.deliveries.extend(deliveries.into_iter().filter_map(&mut change));
        if self.stored.iter().any(|waiting| matches!(waiting, Waiting::Here(_))) {
            let stored = std::mem::take(&mut self.stored);
            self.stored.extend(stored.into_iter().filter_map(|waiting| match waiting {
                Waiting::Here(delivery) => {
                    change(*delivery).map(|rest| Waiting::Here(Box::new(rest)))
                }
                elsewhere => Some(elsewhere),
            }));
        }
        self.count_bytes();
    }

    fn in_memory(&self) -> impl Iterator<Item = &Delivery> {
        let behind = self.stored.iter().filter_map(|waiting| match waiting {
            Waiting::Here(delivery) => Some(&**delivery),
            Waiting::Whole { .. } | Waiting::Part(_) => None,
        });
        self.deliveries.iter().chain(behind)
    }

    fn count_bytes(&mut self) {
        self.bytes = self.deliveries.iter().map(|delivery| delivery.piece_bytes).sum();
    }

    /// See [`Outgoing::drop_expired`].
    pub(super) fn drop_expired(
        &mut self,
        now: Instant,
        durable: Option<SessionId>,
        out: &mut Output,
    ) -> bool {
        if !self.in_memory().any(|delivery| delivery.expires) {
            return false;
        }
        self.change_in_memory(|delivery| {
            if !delivery.expires {
                return Some(delivery);
            }
            let (messages, held_bytes) = (delivery.messages, delivery.held_bytes);
            let mut expired = Vec::new();
            let current = current_pieces(&delivery, now, &mut expired);
            if current.iter().map(|piece| piece.count).sum::<u32>() == messages {
                return Some(delivery);
            }
            expired.into_iter().for_each(|logged| out.journal.done(durable, logged, 1));
            let rest = delivery.with_pieces(current);
            let kept = rest.as_ref().map_or((0, 0), |it| (it.messages, it.held_bytes));
            out.tally.expired += u64::from(messages - kept.0);
            out.tally.released_messages += u64::from(messages - kept.0);
            out.tally.released_bytes += held_bytes - kept.1;
            rest
        });
        self.in_memory().any(|delivery| delivery.expires)
    }

    /// The front delivery becomes what of it has not been sent.
    fn forget_sent(&mut self) {
        if let Some(front) = self.deliveries.front_mut() {
            front.pieces.drain(..self.sent_pieces);
            // What was sent of a piece has left it, but not this sum.
            front.messages = front.pieces.iter().map(|piece| piece.count).sum();
            front.piece_bytes = front.pieces.iter().map(|piece| piece.len as usize).sum();
            front.held_bytes = front.held_bytes.saturating_sub(self.charge_given);
            self.sent_pieces = 0;
            self.charge_given = 0;
        }
    }

    /// Takes the next frames that belong together, at most `count_max`.
    pub(super) fn take(&mut self, count_max: usize, out: &mut Output) -> Option<Stretch> {
        let delivery = self.deliveries.front_mut()?;
        let whole = *delivery.pieces.get(self.sent_pieces)?;
        let via = delivery.via(&whole).cloned();
        let count_max = count_max.min(via.as_deref().map_or(usize::MAX, stretch_max));
        let mut piece = whole;
        if whole.count as usize > count_max {
            piece.count = count_max as u32;
            piece.len = bytes_of_frames(delivery.frames(&whole), count_max) as u32;
        }
        self.bytes = self.bytes.saturating_sub(piece.len as usize);
        let start = piece.offset as usize;
        let end = start + piece.len as usize;
        let buffer = delivery.buffers.get(piece.buffer as usize);
        let found = buffer.filter(|buffer| end <= buffer.frames.len());
        let found = found.map(|buffer| (buffer.frames.slice(start..end), buffer.received_at));

        let logged = delivery.logged(&piece);
        let share = delivery.held_bytes * piece.len as usize / delivery.piece_bytes.max(1);
        let mut charged_bytes = share;
        self.charge_given += share;
        if piece.count == whole.count {
            self.sent_pieces += 1;
        } else if let Some(rest) = delivery.pieces.get_mut(self.sent_pieces) {
            rest.offset += piece.len;
            rest.len -= piece.len;
            rest.count -= piece.count;
            rest.first += piece.count;
        }
        if self.sent_pieces == delivery.pieces.len() {
            charged_bytes += delivery.held_bytes.saturating_sub(self.charge_given);
            self.deliveries.pop_front();
            self.sent_pieces = 0;
            self.charge_given = 0;
        }
        out.tally.released_messages += u64::from(piece.count);
        let (frames, received_at) = found?;
        let Piece { version, qos, retain, expires, .. } = piece;
        let body =
            Body { frames, version, qos, retain, expires, received_at, via, charged_bytes, logged };
        Some(Stretch { piece, body })
    }
}

/// How many messages that came by `via` may go out together: each is sent with all identifiers, and in
/// the output they must not become much more than it may hold.
fn stretch_max(via: &Via) -> usize {
    let identifiers = via.identifiers.len().max(1);
    (OUTPUT_BYTES_MAX / (IDENTIFIER_BYTES_MAX * identifiers)).max(1)
}

/// The pieces of `delivery` without the messages that have expired; of these, those that are in the log.
fn current_pieces(delivery: &Delivery, now: Instant, expired: &mut Vec<Logged>) -> Vec<Piece> {
    let mut current = Vec::new();
    for piece in &delivery.pieces {
        let buffer = delivery.buffers.get(piece.buffer as usize);
        let (true, Some(buffer)) = (piece.expires, buffer) else {
            current.push(*piece);
            continue;
        };
        let waited_s = now.saturating_duration_since(buffer.received_at).as_secs();
        let mut frames = delivery.frames(piece);
        let Piece { mut offset, mut first, .. } = *piece;
        // The piece that grows while frames follow each other that have not expired.
        let mut growing: Option<Piece> = None;
        while let Some(view) = PublishView::parse(frames, piece.version) {
            let len = view.frame_len as u32;
            let interval_s = view.message_expiry_interval_s();
            if interval_s.is_some_and(|interval_s| u64::from(interval_s) <= waited_s) {
                current.extend(growing.take());
                expired.extend(delivery.logged(&Piece { first, ..*piece }));
            } else {
                let fresh = Piece { offset, len: 0, count: 0, first, ..*piece };
                let grown = growing.get_or_insert(fresh);
                grown.len += len;
                grown.count += 1;
            }
            offset += len;
            first += 1;
            frames = frames.get(view.frame_len..).unwrap_or_default();
        }
        current.extend(growing);
    }
    current
}

/// Bytes of the first `count` frames.
fn bytes_of_frames(frames: &[u8], count: usize) -> usize {
    let mut len = 0;
    for _ in 0..count {
        len += frames.get(len..).and_then(next_frame).unwrap_or(0);
    }
    len
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Collector;
    use crate::message::{Buffer, Kind, TopicHasher};

    /// What waits in the log comes behind what is in memory and before what came later, whatever that is.
    #[test]
    fn order_is_kept_while_some_messages_are_in_the_log_only() {
        let mut out = output();
        let mut queue = Queue::default();
        queue.push(delivery(1, 100, Some(10)), true, &mut out);
        queue.push(delivery(2, AWAY_BYTES_MAX, Some(20)), true, &mut out);
        queue.push(delivery(3, 100, Some(30)), true, &mut out);
        queue.push(delivery(4, 100, None), true, &mut out);
        queue.push(delivery(5, 100, Some(50)), true, &mut out);
        assert_eq!(taken(&mut queue, &mut out), [1, 2]);

        let chunk = queue.next_chunk().unwrap();
        assert_eq!(positions(&chunk), [30]);
        assert!(queue.next_chunk().is_none(), "one chunk at a time");
        queue.push(delivery(6, 100, Some(60)), false, &mut out);
        assert!(taken(&mut queue, &mut out).is_empty());
        queue.push_fetched(vec![delivery(3, 100, Some(30))]);
        assert_eq!(taken(&mut queue, &mut out), [3, 4]);

        let chunk = queue.next_chunk().unwrap();
        assert_eq!(positions(&chunk), [50, 60]);
        queue.push_fetched(vec![delivery(5, 100, Some(50)), delivery(6, 100, Some(60))]);
        queue.push(delivery(7, 100, Some(70)), false, &mut out);
        assert_eq!(taken(&mut queue, &mut out), [5, 6, 7]);
        assert!(queue.is_empty() && queue.next_chunk().is_none());
    }

    #[test]
    fn slow_client_has_no_more_in_memory_than_its_share() {
        let mut out = output();
        let mut queue = Queue::default();
        for number in 0..100 {
            queue.push(delivery(number, 50_000, Some(u64::from(number) + 1)), false, &mut out);
        }
        assert!(queue.bytes < MEMORY_BYTES_MAX + 50_000, "{}", queue.bytes);
        assert_eq!(queue.deliveries.len() + queue.stored.len(), 100);
    }

    /// One message, all of whose `len` bytes are its number.
    fn delivery(number: u8, len: usize, logged_at: Option<u64>) -> Delivery {
        // The queue looks at no frame that it need not cut.
        let frame = vec![number; len];
        let piece = Piece {
            buffer: 0,
            offset: 0,
            len: frame.len() as u32,
            count: 1,
            version: ProtocolVersion::V311,
            frame_qos: Qos::AtLeastOnce,
            frame_retain: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            expires: false,
            via: 0,
            record: u32::from(logged_at.is_some()),
            first: 0,
        };
        let buffer = Buffer { frames: Bytes::from(frame), received_at: Instant::now() };
        let mut delivery = Delivery::new(Kind::Acknowledged, vec![buffer], vec![piece], Vec::new());
        delivery.logged_from = LogPosition(logged_at.unwrap_or(0));
        delivery
    }

    fn taken(queue: &mut Queue, out: &mut Output) -> Vec<u8> {
        let number = |stretch: Stretch| *stretch.body.frames.last().unwrap();
        std::iter::from_fn(|| queue.take(usize::MAX, out)).map(number).collect()
    }

    fn positions(chunk: &[Stored]) -> Vec<u64> {
        chunk.iter().map(|stored| stored.at.0).collect()
    }

    fn output() -> Output {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        Output::new(Collector::new(hasher, 1, Instant::now()))
    }
}
