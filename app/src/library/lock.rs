//! The lock that keeps a virtual machine from running twice: an open file description lock (`fcntl(2)`, F_OFD_SETLK) on
//! `vm.lock` in its folder. The kernel drops it when the process that holds it ends, however it ends.
//!
//! An OFD lock and no `flock`, because its holder can be asked for without taking the lock: a manager that looks at a
//! machine must never make a start of it fail.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The lock's file in a machine's folder.
pub const FILE: &str = "vm.lock";
/// The most that is read of a lock file.
const MAX_NOTE: u64 = 4096;

/// Who holds a lock, as the holder wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id; 0 when it has not written it yet.
    pub pid: u32,
    /// The boot of the host it was written in (`/proc/sys/kernel/random/boot_id`): a note of an earlier boot is stale.
    pub boot: String,
    /// It runs the machine; otherwise it does something with the files of one that is off, for a while.
    #[serde(default = "runs")]
    pub runs: bool,
}

/// What is true of a holder that does not say.
fn runs() -> bool {
    true
}

/// A lock that is held; dropping it lets go.
#[derive(Debug)]
pub struct VmLock {
    _file: File,
}

fn flock(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The id of the host's present boot; empty where the host does not tell.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_string()).unwrap_or_default()
}

fn note(file: &File) -> Holder {
    let mut text = String::new();
    let _ = file.take(MAX_NOTE).read_to_string(&mut text);
    let holder = toml::from_str::<Holder>(&text).ok().filter(|h| h.boot == boot_id());
    holder.unwrap_or(Holder { pid: 0, boot: boot_id(), runs: true })
}

impl VmLock {
    /// Takes the lock of the machine in `folder`, to run it or to do something with its files; or tells who has it.
    ///
    /// # Errors
    /// The lock file cannot be made or locked.
    pub fn take(folder: &Path, runs: bool) -> io::Result<Result<VmLock, Holder>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(FILE))?;
        let wish = flock(libc::F_WRLCK);
        // SAFETY: the descriptor is open and `wish` is a valid flock for the duration of the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &wish) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Ok(Err(note(&file))),
                _ => Err(error),
            };
        }
        let holder = Holder { pid: std::process::id(), boot: boot_id(), runs };
        let text = toml::to_string(&holder).map_err(io::Error::other)?;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        Ok(Ok(VmLock { _file: file }))
    }
}

/// Who holds the lock of the machine in `folder`; `None` when nobody does. Takes nothing.
///
/// # Errors
/// The lock file is there and cannot be read or asked for.
pub fn holder(folder: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut wish = flock(libc::F_WRLCK);
    // SAFETY: the descriptor is open and `wish` is a valid flock for the duration of the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut wish) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((i32::from(wish.l_type) != libc::F_UNLCK).then(|| note(&file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_once_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        let lock = VmLock::take(dir.path(), true).unwrap().unwrap();
        assert_eq!(VmLock::take(dir.path(), true).unwrap().unwrap_err().pid, std::process::id());
        assert_eq!(holder(dir.path()).unwrap().unwrap().pid, std::process::id());
        drop(lock);
        assert_eq!(holder(dir.path()).unwrap(), None);
        VmLock::take(dir.path(), true).unwrap().unwrap();
    }

    #[test]
    fn who_only_does_something_with_the_files_is_told_from_who_runs_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        for runs in [true, false] {
            let _lock = VmLock::take(dir.path(), runs).unwrap().unwrap();
            assert_eq!(holder(dir.path()).unwrap().unwrap().runs, runs);
        }
        // The note of a version that did not say.
        let _lock = VmLock::take(dir.path(), false).unwrap().unwrap();
        let note = format!("pid = 1\nboot = \"{}\"\n", boot_id());
        std::fs::write(dir.path().join(FILE), note).unwrap();
        assert!(holder(dir.path()).unwrap().unwrap().runs);
    }

    #[test]
    fn asking_for_the_holder_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(VmLock::take(dir.path(), true).unwrap().unwrap());
        let file = File::open(dir.path().join(FILE)).unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        let _lock = VmLock::take(dir.path(), true).unwrap().unwrap();
        drop(file);
    }

    #[test]
    fn a_note_of_an_earlier_boot_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = VmLock::take(dir.path(), true).unwrap().unwrap();
        std::fs::write(dir.path().join(FILE), "pid = 1\nboot = \"long ago\"\n").unwrap();
        assert_eq!(holder(dir.path()).unwrap().unwrap().pid, 0);
    }
}
