//! What one session waits for of one record: which of its messages, and how to deliver them. Floor 3: pure.
//!
//! ```text
//! [version u8][flags u8][received_at_ms u64][frames_len u32][count u32][deliveries u32] then for each
//!     [flags u8][identifiers u16, then u32 each][filter u16 and its text]            as flags say
//!     [parts u32] then for each
//!         [first u32][count u32][packet id u16, or 0][position of the record that said Sent u64]
//! ```
//!
//! # Invariants
//!
//! - A delivery has its parts in the order of their numbers; they do not overlap and none is empty.
//! - A part that was sent has consecutive identifiers, at most as many as there are.

use std::num::NonZeroU32;
use std::ops::Range;

use bytes::{Buf, BufMut};

use super::row::{put_version, take_version};
use crate::ids::{LogPosition, PacketId, ProtocolVersion, Qos};
use crate::record::{Messages, Target, via};

/// Packet identifiers that exist.
pub(super) const IDENTIFIERS: u32 = 65_535;
/// Flag of an entry.
const EXPIRES: u8 = 1;
/// Flag of a delivery, besides QoS in two bits and those of `record::via`.
const RETAIN: u8 = 1 << 2;

/// See the module comment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// How the frames are encoded.
    pub(super) version: ProtocolVersion,
    /// They have a Message Expiry Interval.
    pub(super) expires: bool,
    /// Milliseconds since 1970, UTC.
    pub(super) received_at_ms: u64,
    /// Bytes of all frames of the record.
    pub(super) frames_len: u32,
    /// Of all frames of the record.
    count: u32,
    first: Delivery,
    /// A session may get a record twice: by a subscription and by a shared one.
    more: Vec<Delivery>,
}

/// One way by which the session gets messages of the record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Delivery {
    /// QoS to deliver with.
    pub(super) qos: Qos,
    /// RETAIN flag to deliver with.
    pub(super) retain: bool,
    /// `None` where neither subscription identifiers nor a shared subscription come with it.
    pub(super) via: Option<Box<Via>>,
    left: Left,
}

/// By which subscriptions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Via {
    /// Subscription Identifiers.
    pub(super) identifiers: Box<[NonZeroU32]>,
    /// The shared subscription.
    pub(super) share: Option<Box<str>>,
}

/// What the session still waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Left {
    /// Every message of the record, and none of them was sent. Most entries come and go like that.
    is_all: bool,
    /// Without meaning while that is so.
    parts: Vec<Part>,
}

/// Consecutive messages that are in the same state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    /// Number of the first.
    pub(super) first: u32,
    /// At least one.
    pub(super) count: u32,
    /// `None` while they wait.
    pub(super) sent: Option<Sent>,
}

/// Messages that were sent with consecutive identifiers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Sent {
    /// Of the first of them.
    pub(super) first_id: PacketId,
    /// Position of the record that said so: the order of sending.
    pub(super) at: LogPosition,
}

impl Entry {
    /// All messages of a record that have come for `target`.
    pub(super) fn new(messages: &Messages<'_>, target: Target<'_>) -> Self {
        Self {
            version: messages.version,
            expires: messages.expires,
            received_at_ms: messages.received_at_ms,
            frames_len: messages.frames.len() as u32,
            count: messages.count,
            first: Delivery::new(target),
            more: Vec::new(),
        }
    }

    /// The same messages have come by another way as well.
    pub(super) fn add(&mut self, target: Target<'_>) {
        self.more.push(Delivery::new(target));
    }

    /// Whether there is nothing left.
    pub(super) fn is_empty(&self) -> bool {
        self.deliveries().all(|delivery| !delivery.left.is_all && delivery.left.parts.is_empty())
    }

    /// Messages that are left, in all deliveries.
    pub(super) fn live(&self) -> u64 {
        self.parts().map(|(_, part)| u64::from(part.count)).sum()
    }

    /// All that is left: by which delivery, and what.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&Delivery, Part)> {
        let all = Part { first: 0, count: self.count, sent: None };
        self.deliveries().flat_map(move |delivery| {
            let whole = delivery.left.is_all.then_some(all);
            let parts = delivery.left.parts.iter().copied();
            whole.into_iter().chain(parts).map(move |part| (delivery, part))
        })
    }

    /// Takes all messages out if they are `numbers` and nothing has become of any of them, and says how many.
    pub(super) fn take_untouched(&mut self, numbers: &Range<u32>) -> Option<u64> {
        let is_whole = self.first.left.is_all
            && self.more.is_empty()
            && numbers.start == 0
            && numbers.end >= self.count;
        is_whole.then(|| {
            self.first.left.is_all = false;
            self.count.into()
        })
    }

    /// Takes these messages out and returns what they were: each from the first delivery where it waits, or
    /// else from the first that has it. What was sent at QoS 2 ends by its identifier, so where a session has
    /// both it is the other one that is over.
    pub(super) fn take(&mut self, numbers: Range<u32>) -> Vec<Part> {
        let is_waiting = |part: Part| part.sent.is_none().then_some(part);
        let mut taken = self.change(numbers.clone(), is_waiting, |_| None);
        let mut found = taken.clone();
        found.sort_unstable_by_key(|part| part.first);
        for numbers in missing(numbers, &found) {
            taken.extend(self.change(numbers, Some, |_| None));
        }
        taken
    }

    /// Takes out the message that was sent with this identifier.
    pub(super) fn take_sent(&mut self, number: u32, id: PacketId) -> Vec<Part> {
        let is_it = |part: Part| part.sent.is_some_and(|sent| sent.first_id == id).then_some(part);
        self.change(number..number.saturating_add(1), is_it, |_| None)
    }

    /// These messages were sent, the first with `first_id`: each is one in the first delivery where it
    /// waits. Returns those that waited, as they are now.
    pub(super) fn send(&mut self, numbers: Range<u32>, sent: Sent) -> Vec<Part> {
        let start = numbers.start;
        let as_sent = |part: Part| {
            let first_id = id_after(sent.first_id, part.first - start);
            Part { sent: Some(Sent { first_id, ..sent }), ..part }
        };
        let is_waiting = |part: Part| part.sent.is_none().then_some(as_sent(part));
        self.change(numbers, is_waiting, Some)
    }

    /// Cuts the parts at the ends of `numbers`, turns those within by `turn` and keeps what `keep` makes of
    /// them, if anything. Where `turn` says `None` a part stays as it is, and its messages are looked for in
    /// the next delivery. Returns what was turned.
    fn change(
        &mut self,
        numbers: Range<u32>,
        turn: impl Fn(Part) -> Option<Part>,
        keep: impl Fn(Part) -> Option<Part>,
    ) -> Vec<Part> {
        let count = self.count;
        let mut turned = Vec::new();
        let mut wanted = vec![numbers];
        for delivery in [&mut self.first].into_iter().chain(&mut self.more) {
            let parts = delivery.left.parts_mut(count);
            let seen = turned.len();
            for numbers in &wanted {
                if parts.iter().any(|part| part.within(numbers).is_some()) {
                    change_parts(parts, numbers, &turn, &keep, &mut turned);
                }
            }
            let found = turned.get(seen..).unwrap_or_default();
            wanted = wanted.into_iter().flat_map(|numbers| missing(numbers, found)).collect();
            if wanted.is_empty() {
                break;
            }
        }
        turned
    }

    fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        [&self.first].into_iter().chain(&self.more)
    }
}

impl Delivery {
    fn new(target: Target<'_>) -> Self {
        let Target { qos, retain, identifiers, share, part, .. } = target;
        let has_via = !identifiers.is_empty() || share.is_some();
        let via = has_via.then(|| {
            Box::new(Via { identifiers: identifiers.into(), share: share.map(Box::from) })
        });
        let left = match part {
            None => Left::ALL,
            Some((first, count)) => {
                Left { is_all: false, parts: vec![Part { first, count, sent: None }] }
            }
        };
        Self { qos, retain, via, left }
    }
}

impl Left {
    const ALL: Self = Self { is_all: true, parts: Vec::new() };

    fn parts_mut(&mut self, count: u32) -> &mut Vec<Part> {
        if self.is_all {
            *self = Self { is_all: false, parts: vec![Part { first: 0, count, sent: None }] };
        }
        &mut self.parts
    }
}

impl Part {
    /// The numbers of its messages.
    pub(super) fn numbers(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }

    /// What of it lies in `numbers`.
    fn within(&self, numbers: &Range<u32>) -> Option<Self> {
        let own = self.numbers();
        let (start, end) = (own.start.max(numbers.start), own.end.min(numbers.end));
        let sent = self.sent.map(|sent| {
            let first_id = id_after(sent.first_id, start.saturating_sub(own.start));
            Sent { first_id, ..sent }
        });
        (start < end).then(|| Self { first: start, count: end - start, sent })
    }
}

/// The identifier `steps` after this one.
pub(super) fn id_after(id: PacketId, steps: u32) -> PacketId {
    let zero_based = (u32::from(id.get()) - 1 + steps % IDENTIFIERS) % IDENTIFIERS;
    PacketId::new(zero_based as u16 + 1).unwrap_or(PacketId::FIRST)
}

fn change_parts(
    parts: &mut Vec<Part>,
    numbers: &Range<u32>,
    turn: impl Fn(Part) -> Option<Part>,
    keep: impl Fn(Part) -> Option<Part>,
    turned: &mut Vec<Part>,
) {
    let mut kept = Vec::with_capacity(parts.len() + 1);
    for part in parts.drain(..) {
        let change = part.within(numbers).and_then(|inside| Some((inside, turn(inside)?)));
        let Some((inside, change)) = change else {
            kept.push(part);
            continue;
        };
        turned.push(change);
        kept.extend(part.within(&(0..inside.first)));
        kept.extend(keep(change));
        kept.extend(part.within(&(inside.numbers().end..u32::MAX)));
    }
    *parts = kept;
}

/// What of `numbers` is not in `found`, which is in order.
fn missing(numbers: Range<u32>, found: &[Part]) -> Vec<Range<u32>> {
    let mut missing = Vec::new();
    let mut start = numbers.start;
    for part in found.iter().filter_map(|part| part.within(&numbers)) {
        if start < part.first {
            missing.push(start..part.first);
        }
        start = part.numbers().end;
    }
    if start < numbers.end {
        missing.push(start..numbers.end);
    }
    missing
}

impl Entry {
    /// Appends the row.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_version(self.version, out);
        out.put_u8(if self.expires { EXPIRES } else { 0 });
        out.put_u64_le(self.received_at_ms);
        out.put_u32_le(self.frames_len);
        out.put_u32_le(self.count);
        out.put_u32_le(1 + self.more.len() as u32);
        self.deliveries().for_each(|delivery| delivery.encode(self.count, out));
    }

    /// Reads a row, all of it.
    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let row = &mut row;
        let version = take_version(row)?;
        let expires = row.try_get_u8().ok()? & EXPIRES != 0;
        let received_at_ms = row.try_get_u64_le().ok()?;
        let frames_len = row.try_get_u32_le().ok()?;
        let count = row.try_get_u32_le().ok()?;
        let deliveries = row.try_get_u32_le().ok()?.checked_sub(1)?;
        let first = Delivery::decode(row, count)?;
        let mut more = Vec::new();
        for _ in 0..deliveries {
            more.push(Delivery::decode(row, count)?);
        }
        let entry = Self { version, expires, received_at_ms, frames_len, count, first, more };
        row.is_empty().then_some(entry)
    }
}

impl Delivery {
    fn encode(&self, count: u32, out: &mut Vec<u8>) {
        let (identifiers, share) = match self.via.as_deref() {
            Some(Via { identifiers, share }) => (&**identifiers, share.as_deref()),
            None => (&[][..], None),
        };
        let retain = if self.retain { RETAIN } else { 0 };
        out.put_u8(self.qos as u8 | retain | via::flags(identifiers, share));
        via::put(identifiers, share, out);
        let all = [Part { first: 0, count, sent: None }];
        let parts = if self.left.is_all { &all } else { &self.left.parts[..] };
        out.put_u32_le(parts.len() as u32);
        parts.iter().for_each(|part| part.encode(out));
    }

    fn decode(row: &mut &[u8], count: u32) -> Option<Self> {
        let flags = row.try_get_u8().ok()?;
        let (identifiers, share) = via::take(flags, row)?;
        let has_via = !identifiers.is_empty() || share.is_some();
        let via = has_via.then(|| {
            Box::new(Via { identifiers: identifiers.into(), share: share.map(Box::from) })
        });
        let left = Left::decode(row, count)?;
        Some(Self { qos: Qos::new(flags & 0b11)?, retain: flags & RETAIN != 0, via, left })
    }
}

impl Left {
    fn decode(row: &mut &[u8], count: u32) -> Option<Self> {
        let mut parts: Vec<Part> = Vec::new();
        for _ in 0..row.try_get_u32_le().ok()? {
            let part = Part::decode(row)?;
            let end = parts.last().map_or(0, |last| last.numbers().end);
            let is_possible = part.count > 0
                && part.first >= end
                && part.first.checked_add(part.count).is_some_and(|end| end <= count);
            parts.push(Some(part).filter(|_| is_possible)?);
        }
        let is_all = parts == [Part { first: 0, count, sent: None }];
        Some(if is_all { Self::ALL } else { Self { is_all, parts } })
    }
}

impl Part {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.first);
        out.put_u32_le(self.count);
        out.put_u16_le(self.sent.map_or(0, |sent| sent.first_id.get()));
        out.put_u64_le(self.sent.map_or(0, |sent| sent.at.0));
    }

    fn decode(row: &mut &[u8]) -> Option<Self> {
        let first = row.try_get_u32_le().ok()?;
        let count = row.try_get_u32_le().ok()?;
        let first_id = PacketId::new(row.try_get_u16_le().ok()?);
        let at = LogPosition(row.try_get_u64_le().ok()?);
        Some(Self { first, count, sent: first_id.map(|first_id| Sent { first_id, at }) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::SessionId;
    use crate::record::Targets;

    #[test]
    fn messages_are_taken_out_in_any_order_and_the_rest_keeps_its_numbers_and_identifiers() {
        let mut entry = entry(10);
        assert_eq!(sent_ids(&entry.send(2..6, sent(65_534))), [(2, 4, Some(65_534))]);
        assert_eq!(sent_ids(&entry.take(4..8)), [(6, 2, None), (4, 2, Some(1))]);
        let left: Vec<Part> = entry.parts().map(|(_, part)| part).collect();
        assert_eq!(sent_ids(&left), [(0, 2, None), (2, 2, Some(65_534)), (8, 2, None)]);
        assert_eq!(entry.live(), 6);
        assert_eq!(sent_ids(&entry.take_sent(3, id(65_535))), [(3, 1, Some(65_535))]);
        assert_eq!(entry.take_sent(2, id(9)), []);
        assert_eq!(entry.send(2..3, sent(9)), [], "it was sent before");
        assert_eq!(entry.take_untouched(&(0..10)), None);
        entry.take(0..u32::MAX);
        assert!(entry.is_empty());
    }

    #[test]
    fn what_comes_by_two_ways_is_taken_from_the_first_that_has_it() {
        let mut entry = entry(3);
        entry.add(target(Some("$share/g/a")));
        assert_eq!(entry.live(), 6);
        assert_eq!(entry.take_untouched(&(0..3)), None);
        entry.take(1..2);
        assert_eq!(sent_ids(&entry.take(0..3)), [(0, 1, None), (2, 1, None), (1, 1, None)]);
        let left: Vec<(bool, u32)> =
            entry.parts().map(|(delivery, part)| (delivery.via.is_some(), part.first)).collect();
        assert_eq!(left, [(true, 0), (true, 2)]);
        assert_eq!(decoded(&entry), entry, "an empty delivery before one that is not");
    }

    #[test]
    fn what_is_done_is_rather_the_copy_that_has_no_identifier() {
        let mut entry = entry(2);
        entry.add(target(Some("$share/g/a")));
        entry.send(0..2, sent(7));
        entry.take(0..2);
        let left: Vec<Part> = entry.parts().map(|(_, part)| part).collect();
        assert_eq!(sent_ids(&left), [(0, 2, Some(7))]);
        entry.take(0..2);
        assert!(entry.is_empty());
    }

    #[test]
    fn rows_are_read_as_they_were_written_and_cut_ones_are_none() {
        let mut partly = entry(u32::MAX);
        partly.add(target(None));
        partly.send(7..9, sent(3));
        for entry in [entry(1), partly] {
            let mut row = Vec::new();
            entry.encode(&mut row);
            assert_eq!(decoded(&entry), entry);
            assert!((0..row.len()).all(|len| Entry::decode(&row[..len]).is_none()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_row_or_none(bytes in prop::collection::vec(0..6_u8, 0..90)) {
            let _ = Entry::decode(&bytes);
        }
    }

    fn decoded(entry: &Entry) -> Entry {
        let mut row = Vec::new();
        entry.encode(&mut row);
        Entry::decode(&row).unwrap()
    }

    fn entry(count: u32) -> Entry {
        let messages = Messages {
            version: ProtocolVersion::V5,
            qos: Qos::ExactlyOnce,
            expires: true,
            is_retained: false,
            received_at_ms: 5,
            publisher: None,
            count,
            frames: b"frames",
            targets: Targets::NONE,
        };
        Entry::new(&messages, target(None))
    }

    fn target(share: Option<&str>) -> Target<'_> {
        let identifiers = share.iter().filter_map(|_| NonZeroU32::new(77)).collect();
        Target {
            session: SessionId(1),
            qos: Qos::ExactlyOnce,
            retain: true,
            identifiers,
            share,
            part: None,
        }
    }

    fn sent(first_id: u16) -> Sent {
        Sent { first_id: id(first_id), at: LogPosition(8) }
    }

    fn id(raw: u16) -> PacketId {
        PacketId::new(raw).unwrap()
    }

    /// First, count and first identifier of each.
    fn sent_ids(parts: &[Part]) -> Vec<(u32, u32, Option<u16>)> {
        let id = |part: &Part| part.sent.map(|sent| sent.first_id.get());
        parts.iter().map(|part| (part.first, part.count, id(part))).collect()
    }
}
