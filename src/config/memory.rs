//! How much memory the system says that the broker uses, and how much it may use. Floor 6, called by `main` and
//! `config::arguments`. Linux; elsewhere nobody knows.
//!
//! A container, or a service with `MemoryMax=`, is a control group with a limit, and the system kills in it whoever
//! asks for more. Against that limit count, beside the memory of the process, buffers of sockets and what else
//! the system holds for it; the cache of files does not, for that is given back. A limit of several services together
//! is a limit as well, but what the others use is not the broker's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// In version 1, no limit is a number that no machine has.
const LIMIT_MAX: u64 = 1 << 60;

/// Bytes that the process may use: the tightest limit of all groups that it is in.
pub fn limit() -> Option<u64> {
    Groups::own().tightest()
}

/// Bytes that are in use, as the system counts them against the limit there is.
pub fn in_use() -> Option<u64> {
    static GROUPS: OnceLock<Groups> = OnceLock::new();
    let resident = resident()?;
    let charged = GROUPS.get_or_init(Groups::own).charged();
    Some(resident.max(charged.unwrap_or(0)))
}

/// Bytes of the process that are in memory.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let (_, rest) = status.split_once("VmRSS:")?;
    let kibibytes: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The control groups that the process is in, its own first.
#[derive(Debug, Default)]
struct Groups(Vec<Group>);

#[derive(Debug)]
struct Group {
    folder: PathBuf,
    version: Version,
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

impl Groups {
    fn own() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::find(Path::new(ROOT), &own)
    }

    /// Looks below `root`. Of what `own` names, a container may see the folder itself only, as the root.
    fn find(root: &Path, own: &str) -> Self {
        let hierarchies = own.lines().filter_map(|line| {
            let (_, line) = line.split_once(':')?;
            match line.split_once(':')? {
                ("", path) => Some((Version::Two, root.to_owned(), path)),
                ("memory", path) => Some((Version::One, root.join("memory"), path)),
                _ => None,
            }
        });
        let groups = hierarchies.flat_map(|(version, base, path)| {
            let path = Path::new(path.trim_start_matches('/'));
            let folders = path.ancestors().map(move |path| base.join(path));
            folders.filter_map(move |folder| {
                let limit = fs::read_to_string(folder.join(version.limit_file())).ok()?;
                let limit = limit.trim().parse().ok().filter(|limit| *limit < LIMIT_MAX);
                Some(Group { folder, version, limit })
            })
        });
        Self(groups.collect())
    }

    fn tightest(&self) -> Option<u64> {
        self.0.iter().filter_map(|group| group.limit).min()
    }

    /// What counts against the limit of its own group and cannot be given back.
    fn charged(&self) -> Option<u64> {
        let Group { folder, version, .. } = self.0.first().filter(|own| own.limit.is_some())?;
        let all = fs::read_to_string(folder.join(version.usage_file())).ok()?;
        let all: u64 = all.trim().parse().ok()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        let numbers = stat.lines().filter_map(|line| line.split_once(' '));
        let given_back = numbers.filter(|(name, _)| version.is_given_back(name));
        let given_back: u64 = given_back.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum();
        Some(all.saturating_sub(given_back))
    }
}

impl Version {
    fn limit_file(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    fn usage_file(self) -> &'static str {
        match self {
            Self::One => "memory.usage_in_bytes",
            Self::Two => "memory.current",
        }
    }

    /// Caches, by their names in `memory.stat`.
    fn is_given_back(self, name: &str) -> bool {
        match self {
            Self::One => matches!(name, "total_active_file" | "total_inactive_file"),
            Self::Two => matches!(name, "active_file" | "inactive_file" | "slab_reclaimable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn limit(root: &Path, own: &str) -> Option<u64> {
        Groups::find(root, own).tightest()
    }

    #[test]
    fn tightest_limit_of_all_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(limit(root, "0::/system.slice/mqtt.service\n"), None);
        write(root, "system.slice/mqtt.service/memory.max", "max\n");
        assert_eq!(limit(root, "0::/system.slice/mqtt.service\n"), None);
        write(root, "system.slice/memory.max", "500\n");
        assert_eq!(limit(root, "0::/system.slice/mqtt.service\n"), Some(500));
        write(root, "system.slice/mqtt.service/memory.current", "400\n");
        write(root, "system.slice/mqtt.service/memory.stat", "anon 400\n");
        let groups = Groups::find(root, "0::/system.slice/mqtt.service\n");
        assert_eq!(groups.charged(), None, "perhaps it shares its group with others");
        write(root, "system.slice/mqtt.service/memory.max", "300\n");
        assert_eq!(limit(root, "0::/system.slice/mqtt.service\n"), Some(300));
    }

    #[test]
    fn container_whose_group_has_another_name_outside_knows_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "memory.max", "700\n");
        assert_eq!(limit(dir.path(), "0::/\n"), Some(700));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "memory/memory.limit_in_bytes", "800\n");
        assert_eq!(limit(dir.path(), "5:cpu:/\n4:memory:/docker/0123\n0::/\n"), Some(800));
        write(dir.path(), "memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(dir.path(), "4:memory:/docker/0123\n"), None);
    }

    #[test]
    fn what_the_system_can_take_back_is_not_in_use() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "memory.max", "700\n");
        write(dir.path(), "memory.current", "600\n");
        let stat = "anon 200\nsock 100\ninactive_file 150\nactive_file 50\nslab_reclaimable 7\n";
        write(dir.path(), "memory.stat", stat);
        assert_eq!(Groups::find(dir.path(), "0::/").charged(), Some(393));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "memory/memory.limit_in_bytes", "700\n");
        write(dir.path(), "memory/memory.usage_in_bytes", "600\n");
        let stat = "cache 1\ninactive_file 3\ntotal_inactive_file 150\ntotal_active_file 50\n";
        write(dir.path(), "memory/memory.stat", stat);
        assert_eq!(Groups::find(dir.path(), "4:memory:/a").charged(), Some(400));
    }
}
