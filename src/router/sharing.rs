//! Which member of a shared subscription gets a message. Floor 4, called by `router::shard`.
//!
//! Whatever the strategy, a member whose client is connected and whose queue has room comes before one
//! whose client is away, and one without room gets nothing. A run is given out in contiguous
//! stretches, an equal share for each member, so that members get whole stretches to write and not single
//! messages.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::router::route::Target;

/// How the next member is found.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Each in turn, over all topics and shards.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// Who has the fewest bytes waiting or unacknowledged.
    LeastInFlight,
    /// The same for all messages of one publisher, while it can take them.
    StickyPublisher,
    /// The same for all messages of one topic, while it can take them.
    StickyTopic,
}

/// A shared subscription in a route.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// In an order that is the same in all shards.
    pub(super) members: Vec<Target>,
    /// Of the group, shared by all routes.
    pub(super) cursor: Arc<AtomicU64>,
}

/// Whether a member could take a message now.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Room {
    /// It is away, and the message is of QoS 0.
    Offline,
    /// Its queue is full.
    Full,
    /// Its client is away: the message would wait.
    Away,
    /// Its client is there.
    Here,
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) room: Room,
    /// Bytes that wait for it or are not acknowledged by it.
    pub(super) load: usize,
}

impl Group {
    /// How many of `count` messages go to one member together.
    pub(super) fn stretch(&self, strategy: Strategy, count: u32) -> u32 {
        match strategy {
            Strategy::StickyPublisher | Strategy::StickyTopic => count,
            _ => count.div_ceil(self.members.len().max(1) as u32),
        }
    }

    /// The member that gets the next messages; `key` is what a sticky strategy sticks to. `None` where
    /// nobody has room.
    pub(super) fn pick(
        &self,
        strategy: Strategy,
        key: u64,
        member: impl Fn(&Target) -> Member,
    ) -> Option<&Target> {
        let turn = self.cursor.fetch_add(1, Relaxed);
        let start = match strategy {
            Strategy::Random => mix(turn),
            _ => turn,
        };
        let start = (start % self.members.len().max(1) as u64) as usize;
        let (before, from) = self.members.split_at_checked(start)?;
        let in_turn = from.iter().chain(before).map(|target| (target, member(target)));
        let usable = in_turn.filter(|(_, member)| member.room >= Room::Away);
        let best = match strategy {
            Strategy::RoundRobin | Strategy::Random => return first_here(usable),
            Strategy::LeastInFlight => usable.min_by_key(|(_, it)| (Reverse(it.room), it.load)),
            Strategy::StickyPublisher | Strategy::StickyTopic => {
                usable.max_by_key(|(_, it)| (it.room, mix(it.session.0 ^ mix(key))))
            }
        };
        best.map(|(target, _)| target)
    }
}

/// The first whose client is there, else the first at all.
fn first_here<'g>(usable: impl Iterator<Item = (&'g Target, Member)>) -> Option<&'g Target> {
    let mut away = None;
    for (target, member) in usable {
        if member.room == Room::Here {
            return Some(target);
        }
        away.get_or_insert(target);
    }
    away
}

/// Spreads numbers that differ little: the finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Qos;
    use crate::message::Grant;

    #[test]
    fn round_robin_gives_each_its_turn_and_skips_who_cannot_take_it() {
        let group = group(3);
        let picked = picks(&group, Strategy::RoundRobin, 6, |_| Room::Here);
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
        let picked = picks(&group, Strategy::RoundRobin, 3, |id| match id {
            1 => Room::Full,
            _ => Room::Here,
        });
        assert_eq!(picked, [0, 2, 2]);
    }

    #[test]
    fn who_is_there_comes_before_who_is_away_with_every_strategy() {
        let group = group(4);
        for strategy in [
            Strategy::RoundRobin,
            Strategy::Random,
            Strategy::LeastInFlight,
            Strategy::StickyPublisher,
            Strategy::StickyTopic,
        ] {
            let room = |id| if id == 2 { Room::Here } else { Room::Away };
            assert_eq!(picks(&group, strategy, 4, room), [2; 4], "{strategy:?}");
            let room = |id| if id == 2 { Room::Away } else { Room::Full };
            assert_eq!(picks(&group, strategy, 4, room), [2; 4], "{strategy:?}");
            assert!(picks(&group, strategy, 4, |_| Room::Full).is_empty());
            assert!(picks(&group, strategy, 4, |_| Room::Offline).is_empty());
        }
    }

    #[test]
    fn random_and_keys_spread_over_all_members_evenly() {
        let group = group(4);
        let mut counts = [[0; 4]; 2];
        for key in 0..4_000 {
            for (strategy, counts) in
                [Strategy::Random, Strategy::StickyTopic].iter().zip(&mut counts)
            {
                let target = group.pick(*strategy, key, |target| member(target, Room::Here));
                counts[target.unwrap().outbox as usize] += 1;
            }
        }
        assert!(
            counts.as_flattened().iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_sticky_key_stays_and_moves_only_if_its_own_member_goes() {
        let group = group(5);
        let pick = |key, gone| {
            let room = |target: &Target| match target.outbox == gone {
                true => Room::Full,
                false => Room::Here,
            };
            let target = group.pick(Strategy::StickyPublisher, key, |it| member(it, room(it)));
            target.unwrap().outbox
        };
        for key in 0..100 {
            let home = pick(key, u32::MAX);
            assert_eq!(pick(key, u32::MAX), home);
            for gone in (0..5).filter(|gone| *gone != home) {
                assert_eq!(pick(key, gone), home);
            }
            assert_ne!(pick(key, home), home);
        }
    }

    #[test]
    fn least_in_flight_takes_the_least_loaded() {
        let group = group(3);
        let load = |target: &Target| [30, 10, 20][target.outbox as usize];
        let target = group.pick(Strategy::LeastInFlight, 0, |it| Member {
            load: load(it),
            ..member(it, Room::Here)
        });
        assert_eq!(target.unwrap().outbox, 1);
    }

    #[test]
    fn a_run_is_divided_evenly_but_not_by_a_sticky_strategy() {
        let group = group(3);
        assert_eq!(group.stretch(Strategy::RoundRobin, 1), 1);
        assert_eq!(group.stretch(Strategy::RoundRobin, 7), 3);
        assert_eq!(group.stretch(Strategy::StickyTopic, 7), 7);
    }

    fn picks(
        group: &Group,
        strategy: Strategy,
        count: usize,
        room: impl Fn(u32) -> Room,
    ) -> Vec<u32> {
        let pick = |_| {
            let target = group.pick(strategy, 7, |it| member(it, room(it.outbox)));
            target.map(|target| target.outbox)
        };
        (0..count).filter_map(pick).collect()
    }

    fn member(target: &Target, room: Room) -> Member {
        Member { session: SessionId(target.outbox.into()), room, load: 0 }
    }

    fn group(members: u32) -> Group {
        let (qos, no_local, retain_as_published) = (Qos::AtMostOnce, false, false);
        let grant = Grant { qos, no_local, retain_as_published, identifier: None };
        let members = (0..members).map(|outbox| Target { outbox, grant, via: None }).collect();
        Group { members, cursor: Arc::default() }
    }
}
