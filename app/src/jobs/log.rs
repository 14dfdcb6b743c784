//! What is kept of jobs: a line each in `jobs.log` of the machine's logs.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::library::Timestamp;

/// The file in a machine's folder of logs.
const FILE: &str = "jobs.log";
/// The largest it grows before it becomes the old one and a new one starts, bytes.
const MAX: u64 = 1 << 20;

/// Adds a line with the time. A log that can't be written is no reason to fail: the window tells the same.
pub fn append(folder: &Path, line: &str) {
    let _ = write(folder, line, MAX);
}

fn write(folder: &Path, line: &str, max: u64) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(FILE);
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= max) {
        std::fs::rename(&path, folder.join(format!("{FILE}.1")))?;
    }
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    // One call for one line, whoever else writes.
    file.write_all(format!("{} {}\n", Timestamp::now(), line.replace('\n', " ")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_with_their_time_and_the_log_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..10 {
            write(folder.path(), &format!("job\n{number}"), 50).unwrap();
        }
        let [now, old] =
            ["jobs.log", "jobs.log.1"].map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap());
        assert!(now.trim_end().ends_with("Z job 9") && now.len() < 80 && old.len() < 80, "{now}{old}");
        assert!(old.starts_with("20"));
    }
}
