//! What a power cut may take: files that got their names before their contents were on stable storage, and what was not there
//! when the program said that it was done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Call;

/// Files that are locks, and hold nothing that matters.
const LOCKS: &[&str] = &["vm.lock", ".lock"];

/// What is wrong with the order of an operation's calls, in words. A file that is written is to be flushed before it, or a folder
/// above it, is renamed, and before the end; a folder that gets or gives a name, before the end. What is removed again need not be.
pub fn violations(calls: &[Call]) -> Vec<String> {
    let (mut files, mut folders, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let parent = |path: &Path| path.parent().map(PathBuf::from).unwrap_or_default();
    for call in calls {
        let path = &call.path;
        if path.file_name().is_some_and(|name| LOCKS.iter().any(|lock| name == *lock)) {
            continue;
        }
        match call.name {
            "write" | "pwrite" | "writev" | "pwritev" | "ftruncate" | "truncate" => drop(files.insert(path.clone())),
            "fsync" | "fdatasync" => {
                files.remove(path);
                folders.remove(path);
            }
            "unlink" | "unlinkat" | "rmdir" => {
                files.remove(path);
                folders.remove(path);
            }
            "open" | "openat" | "creat" => drop(folders.insert(parent(path))),
            "rename" | "renameat" => {
                wrong.extend(
                    files
                        .iter()
                        .chain(&folders)
                        .filter(|one| one.starts_with(path))
                        .map(|one| format!("{} is renamed before {} is flushed", path.display(), one.display())),
                );
                folders.insert(parent(path));
            }
            _ => {}
        }
    }
    wrong.extend(files.iter().chain(&folders).map(|one| format!("{} is not flushed at the end", one.display())));
    wrong
}
