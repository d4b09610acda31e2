//! The files of Rust below a folder, for tests that read the code.

use std::fs;
use std::path::{Path, PathBuf};

/// Adds those below `dir` to `paths`, in no order that means anything.
pub(crate) fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            paths.push(path);
        }
    }
}
