//! Pacing: how many messages of each publisher may leave now, and the writes themselves. Called by
//! the loop in `worker` at the end of each turn.

use mailboxqtt::ids::Qos;

use super::Worker;
use crate::client::{Client, Part, Publisher};
use crate::phase::Phase;
use crate::schedule::{Schedule, Timetable};
use crate::sequence::Tracking;
use crate::settings::Pace;
use crate::window::Place;

/// Closed loop at QoS 0: a window that stands still for so long is written off.
const STALL_NS: u64 = 1_000_000_000;
/// Open loop at QoS 1 and 2: unacknowledged messages per publisher, well below the 65,535 that
/// packet identifiers allow. What is due beyond waits, and its latency counts from its due time.
const UNACKNOWLEDGED_MAX: u64 = 16_384;
/// Open loop: how long a run that is behind its schedule may go on sending after the end of the
/// measurement. Then there is still time for what was sent to arrive.
const CATCH_UP_NS: u64 = 2_500_000_000;
/// Open loop: messages that become due in one turn. A rate that no machine reaches must not keep a
/// thread from noticing the end of the run; what is left is taken in the next turn.
const DUE_PER_TURN: usize = 65_536;

impl<T: Tracking> Worker<'_, T> {
    /// The phase of connecting is over: sets the pace, and lets every publisher begin.
    pub(super) fn begin_load(&mut self) {
        let publishers: Vec<u32> = (0..self.settings.publishers)
            .filter(|publisher| self.owned[*publisher as usize].is_some())
            .collect();
        match self.settings.pace {
            Pace::Rate(rate) => {
                let timetable = Timetable {
                    start_ns: self.shared.began_ns(Phase::WarmUp),
                    publishers: u64::from(self.settings.publishers),
                    rate,
                };
                self.timetable = Some(timetable);
                self.schedule = Some(Schedule::new(timetable, publishers));
            }
            Pace::Window(_) => {
                let step = self.settings.pace.step();
                for (publisher, gate) in (0..).zip(&mut self.gates) {
                    let progress = &self.shared.progress;
                    let place = Place { progress, thread: self.index, publisher, step };
                    gate.arm(&mut self.trackers, place);
                }
                for publisher in publishers {
                    self.enqueue_publisher(publisher);
                }
            }
        }
    }

    /// Open loop: notes whose messages are due. While draining, only what was due before.
    pub(super) fn take_due(&mut self) {
        if self.has_given_up() {
            self.schedule = None;
        }
        let Some(mut schedule) = self.schedule.take() else { return };
        let until_ns = self.shared.clock.now_ns().min(match self.phase {
            Phase::Drain | Phase::Stop => self.cutter.recorded_ns.end,
            Phase::Ramp | Phase::WarmUp | Phase::Measure => u64::MAX,
        });
        for _ in 0..DUE_PER_TURN {
            let Some(publisher) = schedule.pop_due(until_ns) else { break };
            if let Some(index) = self.owned[publisher as usize] {
                if let Part::Publisher(publisher) = &mut self.clients[index as usize].part {
                    publisher.due += 1;
                }
                self.enqueue(index as usize);
            }
        }
        self.schedule = Some(schedule);
    }

    /// Open loop: whether the messages that are still due will not be sent any more.
    fn has_given_up(&self) -> bool {
        let drain_ns = self.shared.began_ns(Phase::Drain);
        self.phase == Phase::Drain && self.shared.clock.now_ns() > drain_ns + CATCH_UP_NS
    }

    /// Closed loop at QoS 0: a message may be lost for good, and must not hold its publisher.
    pub(super) fn write_off_stalls(&mut self) {
        let Pace::Window(_) = self.settings.pace else { return };
        if self.settings.qos != Qos::AtMostOnce || self.phase < Phase::WarmUp {
            return;
        }
        let now_ns = self.shared.clock.now_ns();
        if now_ns < self.stall_checked_ns + STALL_NS / 4 {
            return;
        }
        self.stall_checked_ns = now_ns;
        for index in 0..self.clients.len() {
            let Part::Publisher(publisher) = &mut self.clients[index].part else { continue };
            let received = self.shared.progress.received(publisher.id);
            let position = T::passed(received, publisher.written_off);
            let waits = position < publisher.block.patched() && publisher.block.is_flushed();
            if position != publisher.moved.0 || !waits {
                publisher.moved = (position, now_ns);
            } else if publisher.moved.1 + STALL_NS <= now_ns {
                publisher.written_off = T::write_off(received, publisher.block.patched());
                self.enqueue(index);
            }
        }
    }

    /// Refills and writes every client that was touched in this turn.
    pub(super) fn flush_queue(&mut self) -> anyhow::Result<()> {
        let mut queue = std::mem::take(&mut self.queue);
        for &index in &queue {
            let index = index as usize;
            self.clients[index].queued = false;
            // Once, unless the frames of the publisher hold less than what may leave.
            loop {
                let refilled = self.refill(index);
                if let Err(error) = self.clients[index].flush() {
                    return Err(self.broken(index, error));
                }
                if !refilled || !self.clients[index].is_flushed() {
                    break;
                }
            }
        }
        queue.clear();
        self.queue = queue;
        Ok(())
    }

    /// Patches as many messages as may leave now; true when there were any.
    #[inline]
    fn refill(&mut self, index: usize) -> bool {
        let Client { part, control, .. } = &mut self.clients[index];
        let Part::Publisher(publisher) = part else { return false };
        let Publisher { id, block, acked, receive_max, due, written_off, .. } = publisher;
        let acknowledged = self.settings.qos != Qos::AtMostOnce;
        let unacknowledged = if acknowledged { block.patched().saturating_sub(*acked) } else { 0 };
        match self.settings.pace {
            Pace::Window(window) => {
                if self.phase != Phase::WarmUp && self.phase != Phase::Measure {
                    return false;
                }
                let received = self.shared.progress.received(*id);
                let done = if acknowledged { received.min(*acked) } else { received };
                let passed = T::passed(done, *written_off);
                let outstanding = block.patched() - passed.min(block.patched());
                let allowed = receive_max.saturating_sub(unacknowledged);
                let free = window.saturating_sub(outstanding).min(block.room()).min(allowed);
                let step = self.settings.pace.step().min((*receive_max / 4).max(1));
                if free < step.min(block.frames()) {
                    return false;
                }
                let now_ns = self.shared.clock.now_ns();
                self.cutter.seen_ns = now_ns;
                self.tally.sent += block.patch(free, control, |_| now_ns);
                true
            }
            Pace::Rate(_) => {
                let Some(schedule) = &self.schedule else { return false };
                let timetable = schedule.timetable();
                let most = UNACKNOWLEDGED_MAX.min(*receive_max);
                let allowed = most.saturating_sub(unacknowledged);
                let count = due.saturating_sub(block.patched()).min(block.room()).min(allowed);
                if count == 0 {
                    return false;
                }
                let now_ns = self.shared.clock.now_ns();
                self.cutter.seen_ns = now_ns;
                let first = block.patched();
                let count = block.patch(count, control, |_| now_ns);
                self.tally.sent += count;
                for sequence in first..first + count {
                    self.cutter.record_slip(timetable.intended_ns(*id, sequence), now_ns);
                }
                true
            }
        }
    }
}
