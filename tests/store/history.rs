//! Runs a log on a disk with faults, remembers what it was promised, and compares that with what is read back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailboxqtt::ids::LogPosition;
use mailboxqtt::store::files::Files;
use mailboxqtt::store::log::{Cause, Completion, Damage, Level, Log, OpenError, Settings};

use crate::disk::Disk;

/// Longer than any test takes; a completion that does not come is a failure and no wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one process, or several in a row, did and know.
#[derive(Clone, Default)]
pub(crate) struct Model {
    /// By position: kind and body, and what was promised. One that may be on the disk stays here until a log was
    /// opened without it.
    pub(crate) records: BTreeMap<u64, Entry>,
    /// No position below may be given out again.
    used_up_to: u64,
    /// Positions of segments that were retired.
    retired: Vec<(u64, u64)>,
    /// Number of the process.
    run: usize,
    /// When the log is opened next, whatever was promised so much has to be there.
    kept_from: Promise,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    body: Vec<u8>,
    run: usize,
    promise: Promise,
}

#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Promise {
    Nothing,
    Written,
    #[default]
    Durable,
}

/// One step of a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Appends that make one batch, each with records of these lengths, the kind included.
    Batch(Vec<(Vec<usize>, Level)>),
    /// Retires the segment with this number, counted from the oldest one, if it is not the last.
    Retire(usize),
    /// Closes the log in good order and opens it again.
    Reopen,
    /// Kills the process and opens the log again.
    Kill,
}

/// A process with an open log.
pub(crate) struct Process {
    pub(crate) log: Log,
    settings: Settings,
    disk: Disk,
    /// Completions, as they run: positions, and what is promised with it.
    told: Receiver<(Vec<u64>, Promise)>,
    tell: Sender<(Vec<u64>, Promise)>,
    salt: u8,
}

/// Small segments and no second thread: the same steps make the same calls in the same order.
pub(crate) fn settings() -> Settings {
    Settings {
        segment_bytes: 1024,
        spare_segments_max: 1,
        prepares_ahead: false,
        sync_interval: Duration::from_secs(3600),
    }
}

impl Process {
    /// Opens the log and compares it with what is promised.
    pub(crate) fn start(
        disk: &Disk,
        settings: &Settings,
        model: &mut Model,
    ) -> Result<Self, OpenError> {
        let kept_from = std::mem::take(&mut model.kept_from);
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let (log, recovered) = Log::open(files, settings.clone(), LogPosition(0), |_| ())?;
        model.run += 1;
        let (tell, told) = mpsc::channel();
        let salt = model.run as u8;
        let process =
            Self { log, settings: settings.clone(), disk: disk.clone(), told, tell, salt };
        process.check(model, kept_from);
        if !disk.is_off() {
            let is_header = |damage: &Damage| damage.cause == Cause::Header;
            assert!(recovered.damage.iter().all(is_header), "{:?}", recovered.damage);
        }
        Ok(process)
    }

    /// `false` when the log has failed.
    pub(crate) fn step(&mut self, step: &Step, model: &mut Model) -> bool {
        match step {
            Step::Batch(appends) => self.batch(appends, model),
            Step::Retire(number) => {
                let segments = self.log.segments();
                let Some([segment, next]) = segments.get(*number..number + 2) else { return true };
                model.retired.push((segment.base.0, next.base.0));
                self.log.retire(segment.base).is_ok()
            }
            Step::Reopen | Step::Kill => {
                let is_kill = matches!(step, Step::Kill) && !self.disk.is_off();
                if is_kill {
                    self.disk.kill();
                }
                self.log.close();
                self.note_told(model);
                if is_kill {
                    self.disk.revive();
                    model.expect_written();
                }
                match Self::start(&self.disk, &self.settings, model) {
                    Ok(process) => *self = process,
                    Err(_) => return false,
                }
                true
            }
        }
    }

    /// Appends while the thread of the log is held in a completion, so that they become one batch.
    pub(crate) fn batch(&mut self, appends: &[(Vec<usize>, Level)], model: &mut Model) -> bool {
        let (reached, has_reached) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let gate: Completion = Box::new(move || {
            let _ = reached.send(());
            let _ = released.recv();
        });
        self.log.append(&[], Level::Os, Some(gate));
        if has_reached.recv_timeout(PATIENCE).is_err() {
            self.note_told(model);
            return false;
        }
        for (lengths, level) in appends {
            self.append(lengths, *level, model);
        }
        let (done, is_done) = mpsc::channel();
        let last: Completion = Box::new(move || done.send(()).unwrap_or_default());
        // A barrier of the highest level, so that no batch asks for more than its appends do.
        let level = match appends.iter().any(|(_, level)| *level == Level::Always) {
            true => Level::Always,
            false => Level::Os,
        };
        self.log.append(&[], level, Some(last));
        drop(release);
        let is_alive = is_done.recv_timeout(PATIENCE).is_ok();
        if !is_alive {
            // Wait until the thread has ended: no completion runs after that.
            self.log.close();
        }
        self.note_told(model);
        is_alive
    }

    /// One append, without waiting.
    pub(crate) fn append(&mut self, lengths: &[usize], level: Level, model: &mut Model) {
        let mut bytes = Vec::new();
        let mut bodies = Vec::new();
        for len in lengths {
            self.salt = self.salt.wrapping_mul(31).wrapping_add(17);
            let body: Vec<u8> = (0..*len).map(|at| self.salt ^ at as u8 | 1).collect();
            bodies.push((bytes.len(), body.clone()));
            bytes.extend([0; 4]);
            bytes.extend((*len as u32).to_le_bytes());
            bytes.extend(body);
        }
        let tell = self.tell.clone();
        let place = Arc::new(Mutex::new(Vec::new()));
        let positions = place.clone();
        // The position is known after the append only, and the completion may run before that.
        let mut places = place.lock().unwrap();
        let promise = if level == Level::Always { Promise::Durable } else { Promise::Written };
        let then: Completion = Box::new(move || {
            let _ = tell.send((positions.lock().unwrap().clone(), promise));
        });
        if self.log.failure().is_some() {
            return;
        }
        let at = self.log.append(&bytes, level, Some(then));
        let has_failed = self.log.failure().is_some();
        assert!(has_failed || at.0 >= model.used_up_to, "position {} is given out twice", at.0);
        for (offset, body) in bodies {
            let position = at.0 + offset as u64;
            places.push(position);
            let entry = Entry { body, run: model.run, promise: Promise::Nothing };
            let before = model.records.insert(position, entry);
            assert!(has_failed || before.is_none(), "{position} is used twice");
        }
    }

    /// Takes down which completions have run.
    pub(crate) fn note_told(&self, model: &mut Model) {
        for (positions, promise) in self.told.try_iter() {
            for position in positions {
                let entry = model.records.get_mut(&position).unwrap();
                entry.promise = entry.promise.max(promise);
                let end = position + 8 + entry.body.len() as u64;
                model.used_up_to = model.used_up_to.max(end);
            }
        }
    }

    /// Reads everything and compares. What is not there will never be.
    fn check(&self, model: &mut Model, kept_from: Promise) {
        let mut read = Vec::new();
        if self.disk.is_off() {
            // Reads fail as well; there will be another look.
            return;
        }
        let until = self.log.durable();
        let end = self.disk.spare(|| {
            self.log.scan(LogPosition(0), until, |at, record| {
                read.push((at.0, record.to_vec()));
                ControlFlow::Continue(())
            })
        });
        let is_missing = |damage: &Damage| damage.cause == Cause::Missing;
        assert!(end.damage.iter().all(is_missing), "{:?}", end.damage);
        assert!(read.is_sorted_by_key(|(at, _)| *at), "in their order");
        let mut kept = BTreeMap::new();
        for (at, body) in read {
            let entry = model.records.remove(&at);
            let entry = entry.unwrap_or_else(|| panic!("nothing was appended at {at}"));
            assert_eq!(entry.body, body, "something else was appended at {at}");
            let read =
                self.disk.spare(|| self.log.read_record(LogPosition(at), usize::MAX)).unwrap();
            assert_eq!(read[8..], body, "at {at}, read alone");
            kept.insert(at, entry);
        }
        let is_retired =
            |at: u64| model.retired.iter().any(|(base, next)| (*base..*next).contains(&at));
        for (at, entry) in model.records.iter().filter(|(at, _)| !is_retired(**at)) {
            assert!(entry.promise < kept_from, "{at} was {:?} and is lost", entry.promise);
            // Whatever that process appended later is not there either.
            let later = kept.range(at..).find(|(_, later)| later.run == entry.run);
            assert!(later.is_none(), "{at} is not there, and {later:?} is");
        }
        // What was found is durable from now on.
        for entry in kept.values_mut() {
            entry.promise = Promise::Durable;
        }
        model.records = kept;
        model.retired.clear();
    }
}

impl Model {
    /// The log was killed and the machine was not: what was written has to be there when it is opened next.
    pub(crate) fn expect_written(&mut self) {
        self.kept_from = Promise::Written;
    }
}
