//! Locks of files that may outlast who had them.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a lock may outlast its holder.
const PATIENCE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(5);

/// Takes a lock by `attempt`, which is made again for half a second while somebody has it. A process that was killed is gone
/// before its locks are: they last as long as a request of its rings, or a process that it has just forked off.
///
/// # Errors
/// Those of the last attempt; [`io::ErrorKind::WouldBlock`] where somebody keeps it.
pub fn take_lock(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => sleep(STEP),
            taken => return taken,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_ends_is_waited_for_and_one_that_is_kept_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || std::fs::File::open(file.path()).unwrap();
        let (holder, other) = (open(), open());
        holder.lock().unwrap();
        let attempt = || other.try_lock().map_err(io::Error::from);
        assert_eq!(take_lock(attempt).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let ends = std::thread::spawn(move || {
            sleep(Duration::from_millis(50));
            drop(holder);
        });
        take_lock(attempt).unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn what_has_nothing_to_do_with_others_is_told_at_once() {
        let mut attempts = 0;
        let refused = take_lock(|| {
            attempts += 1;
            Err(io::ErrorKind::PermissionDenied.into())
        });
        assert_eq!((refused.unwrap_err().kind(), attempts), (io::ErrorKind::PermissionDenied, 1));
    }
}
