//! A disk in memory that forgets what was not synced, breaks at a chosen call, and never does more than a real one
//! promises.
//!
//! Unsynced content is kept apart by sectors of 512 bytes: a power cut keeps any of them and may tear one. Names change in
//! order: a power cut keeps the first few of the changes that were not synced. A sync that fails leaves
//! pages that are clean and on no disk, as Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use mailboxqtt::store::files::{Files, StoredFile};

const SECTOR: usize = 512;
const EIO: i32 = 5;

/// Clones are the same disk; see [`Disk::copy`].
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    names_synced: BTreeMap<String, usize>,
    /// Since the directory was synced.
    changes: Vec<Change>,
    calls: usize,
    fault: Option<(usize, Fault)>,
    /// The power is off, or the process is dead.
    is_off: bool,
    /// Calls are not counted and do not fail.
    is_spared: bool,
    /// Nothing can be read, of what is in a file.
    is_unreadable: bool,
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that the next sync writes.
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum Change {
    Created(String, usize),
    Renamed(String, String),
    Removed(String),
}

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It fails with this error of the system, half done.
    Error(i32),
    /// It fails, and all that come after it.
    PowerCut,
}

impl Disk {
    /// At the call with this number, counted from 0 on.
    pub(crate) fn fail_at(&self, call: usize, fault: Fault) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = Some((call, fault));
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    pub(crate) fn is_off(&self) -> bool {
        self.state().is_off
    }

    /// Nothing that the process does from here on has an effect: what kill -9 is to a file system.
    pub(crate) fn kill(&self) {
        self.state().is_off = true;
    }

    /// For the next process. What was not synced is still not.
    pub(crate) fn revive(&self) {
        self.state().is_off = false;
    }

    /// What is done in `calls` meets no fault.
    pub(crate) fn spare<T>(&self, calls: impl FnOnce() -> T) -> T {
        self.state().is_spared = true;
        let done = calls();
        self.state().is_spared = false;
        done
    }

    /// From now on, until it is taken back.
    pub(crate) fn fail_reads(&self, is_unreadable: bool) {
        self.state().is_unreadable = is_unreadable;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = state.names[name];
        let content = &mut state.files[file];
        damage(&mut content.now);
        content.synced = content.now.clone();
        content.dirty.clear();
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[state.names[name]].now.clone()
    }

    pub(crate) fn copy(&self) -> Self {
        let mut state = self.state().clone();
        (state.is_off, state.fault) = (false, None);
        Self(Arc::new(Mutex::new(state)))
    }

    /// What the disk may hold after a loss of power: all possibilities if they are few, else `images_max` of them,
    /// nothing and everything among them.
    pub(crate) fn images(&self, images_max: usize, rng: &mut Rng) -> Vec<Self> {
        let state = self.state();
        let dirty: Vec<(usize, usize)> = state
            .files
            .iter()
            .enumerate()
            .flat_map(|(file, content)| content.dirty.iter().map(move |sector| (file, *sector)))
            .collect();
        let all = 1_usize.checked_shl(dirty.len() as u32).unwrap_or(usize::MAX);
        let all = all.saturating_mul(state.changes.len() + 1);
        let mut images = Vec::new();
        if all <= images_max {
            for changes in 0..=state.changes.len() {
                for mask in 0..1_usize << dirty.len() {
                    images.push(state.image(changes, &dirty, |at| mask >> at & 1 == 1, None));
                }
            }
        } else {
            images.push(state.image(0, &dirty, |_| false, None));
            images.push(state.image(state.changes.len(), &dirty, |_| true, None));
            while images.len() < images_max {
                let changes = rng.usize(0..=state.changes.len());
                // Mostly kept, mostly lost, or mixed.
                let odds = [10, 50, 90][rng.usize(0..3)];
                images.push(state.image(changes, &dirty, |_| rng.u8(0..100) < odds, None));
            }
        }
        for at in 0..dirty.len().min(8) {
            let torn = Some((at, rng.usize(1..SECTOR)));
            let is_kept = |other: usize| other < at || rng.bool();
            images.push(state.image(state.changes.len(), &dirty, is_kept, torn));
        }
        images
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn image(
        &self,
        changes: usize,
        dirty: &[(usize, usize)],
        mut is_kept: impl FnMut(usize) -> bool,
        torn: Option<(usize, usize)>,
    ) -> Disk {
        let mut files = self.files.clone();
        for (at, (file, sector)) in dirty.iter().enumerate() {
            let kept = match torn {
                Some((torn, bytes)) if torn == at => bytes,
                _ if is_kept(at) => SECTOR,
                _ => 0,
            };
            files[*file].sync(*sector, kept);
        }
        for content in &mut files {
            content.now = content.synced.clone();
            content.dirty.clear();
        }
        let mut names = self.names_synced.clone();
        for change in self.changes.iter().take(changes) {
            change.apply(&mut names);
        }
        let names_synced = names.clone();
        let state = Self { files, names, names_synced, ..Self::default() };
        Disk(Arc::new(Mutex::new(state)))
    }

    /// `Some` if this call has to fail, with an error, after it had half of its effect (or all, if it is small).
    fn call(&mut self) -> io::Result<Option<io::Error>> {
        if self.is_off {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if self.is_spared {
            return Ok(None);
        }
        let call = self.calls;
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Error(code))) if at == call => {
                Ok(Some(io::Error::from_raw_os_error(code)))
            }
            Some((at, Fault::PowerCut)) if at == call => {
                self.is_off = true;
                Ok(Some(io::Error::from_raw_os_error(EIO)))
            }
            _ => Ok(None),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Content {
    /// The first `kept` bytes of the sector reach the disk.
    fn sync(&mut self, sector: usize, kept: usize) {
        let start = sector * SECTOR;
        let end = (start + kept).min(self.now.len());
        if self.synced.len() < self.now.len() {
            self.synced.resize(self.now.len(), 0);
        }
        if start < end {
            self.synced[start..end].copy_from_slice(&self.now[start..end]);
        }
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Created(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Renamed(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Removed(name) => {
                names.remove(name);
            }
        }
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.state();
        match state.call()? {
            Some(error) => Err(error),
            None => Ok(state.names.keys().cloned().collect()),
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let mut state = self.state();
        match state.call()? {
            Some(error) => Err(error),
            None => Ok(Arc::new(Handle { disk: self.clone(), file: state.file(name)? })),
        }
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StoredFile>> {
        let mut state = self.state();
        let error = state.call()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let bytes = if error.is_some() { bytes / 2 } else { bytes } as usize;
        let zeros = vec![0; bytes];
        state.files.push(Content { now: zeros.clone(), synced: zeros, dirty: BTreeSet::new() });
        let file = state.files.len() - 1;
        state.change(Change::Created(name.to_owned(), file));
        match error {
            Some(error) => Err(error),
            None => Ok(Arc::new(Handle { disk: self.clone(), file })),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let error = state.call()?;
        state.file(from)?;
        // One that fails and the power stays on has no effect.
        if error.is_none() || state.is_off {
            state.change(Change::Renamed(from.to_owned(), to.to_owned()));
        }
        error.map_or(Ok(()), Err)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let error = state.call()?;
        state.file(name)?;
        if error.is_none() || state.is_off {
            state.change(Change::Removed(name.to_owned()));
        }
        error.map_or(Ok(()), Err)
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Some(error) = state.call()? {
            return Err(error);
        }
        state.names_synced = state.names.clone();
        state.changes.clear();
        Ok(())
    }
}

struct Handle {
    disk: Disk,
    file: usize,
}

impl StoredFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        match state.call()? {
            Some(error) => Err(error),
            None => Ok(state.files[self.file].now.len() as u64),
        }
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        if let Some(error) = state.call()? {
            return Err(error);
        }
        if state.is_unreadable {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let now = &state.files[self.file].now;
        let start = (offset as usize).min(now.len());
        let end = (start + into.len()).min(now.len());
        into[..end - start].copy_from_slice(&now[start..end]);
        Ok(end - start)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let error = state.call()?;
        let has_half = error.is_some() && !state.is_off;
        let bytes = if has_half { &bytes[..bytes.len() / 2] } else { bytes };
        let content = &mut state.files[self.file];
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        assert!(end <= content.now.len(), "files of the log do not grow");
        content.now[start..end].copy_from_slice(bytes);
        content.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        error.map_or(Ok(()), Err)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let error = state.call()?;
        if state.is_off {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let content = &mut state.files[self.file];
        let dirty = std::mem::take(&mut content.dirty);
        if let Some(error) = error {
            return Err(error);
        }
        for sector in dirty {
            content.sync(sector, SECTOR);
        }
        Ok(())
    }
}
