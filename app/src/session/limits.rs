//! What this process may use of the host, raised to what a machine may need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the largest machine: a doorbell and an interrupt for each of the 65 queues of 16 NVMe disks, and as
/// much again for everything else.
const DESCRIPTORS: u64 = 8192;

/// Lets this process open as many files as the largest machine needs, as far as the host allows. Many desktops start
/// programs with 1024, for the sake of programs that use select(2).
pub(super) fn raise_descriptors() {
    let now = getrlimit(Resource::Nofile);
    if let Some(raised) = raised(now) {
        // Without it a smaller machine starts all the same, and a larger one says what it lacks.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// A higher limit than `now`, if that helps. An absent limit is none.
fn raised(now: Rlimit) -> Option<Rlimit> {
    let most = now.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    now.current.is_some_and(|current| current < most).then_some(Rlimit { current: Some(most), ..now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_raised_as_far_as_needed_and_allowed() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(raised(limit(Some(1024), Some(1 << 20))), Some(limit(Some(DESCRIPTORS), Some(1 << 20))));
        assert_eq!(raised(limit(Some(1024), Some(4096))), Some(limit(Some(4096), Some(4096))));
        assert_eq!(raised(limit(Some(1024), None)), Some(limit(Some(DESCRIPTORS), None)));
        for enough in [limit(Some(1 << 20), Some(1 << 20)), limit(None, None), limit(Some(512), Some(512))] {
            assert_eq!(raised(enough), None);
        }
    }
}
