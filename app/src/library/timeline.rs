//! A machine's timeline: checkpoints that are taken by themselves while it runs, thinner the older they are, in a bounded
//! space. They are snapshots but for their name: a person goes back to one, or opens it as a copy.

use serde::{Deserialize, Serialize};

use super::layers::GoOn;
use super::snapshots::Snapshot;
use super::{LibraryError, Machine, Timestamp};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Checkpoints older than this are not kept.
const OLDEST: u64 = 30 * DAY;

/// How a timeline is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Minutes between two checkpoints while the machine runs.
    pub minutes: u32,
    /// The most that everything saved of the machine may take on the host before the oldest checkpoints go, MiB.
    pub space_mib: u64,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { minutes: 10, space_mib: 20 << 10 }
    }
}

impl Timeline {
    /// Whether it can be kept.
    ///
    /// # Errors
    /// Which number can't be, and which could: a sentence.
    pub fn validate(&self) -> Result<(), String> {
        let Timeline { minutes, space_mib } = *self;
        match () {
            () if !(1..=1440).contains(&minutes) => {
                Err(format!("{minutes} minutes between checkpoints: 1 to 1440 can be"))
            }
            () if space_mib < 64 => Err(format!("{space_mib} MiB for checkpoints: at least 64 are needed")),
            () => Ok(()),
        }
    }

    /// Seconds until the next checkpoint is due, after the last one.
    pub(crate) fn due(&self, last: Timestamp, now: Timestamp) -> u64 {
        // A clock that was set back delays nothing for longer than once.
        let passed = now.0.checked_sub(last.0).unwrap_or(u64::MAX);
        (u64::from(self.minutes) * MINUTE).saturating_sub(passed)
    }
}

/// The checkpoints, of these times, that go for their age: the last hour keeps all, the last day one an hour, the last thirty
/// days one a day. Of several the oldest stays: so each stays or goes for the same reason the next time.
fn too_many(times: &[Timestamp], now: Timestamp) -> Vec<usize> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|&index| times[index]);
    let newest = order.last().copied();
    let mut kept = std::collections::BTreeSet::new();
    let goes = |&index: &usize| {
        let age = now.0.saturating_sub(times[index].0);
        let place = match age {
            _ if Some(index) == newest => return false,
            0..HOUR => return false,
            HOUR..DAY => (HOUR, times[index].0 / HOUR),
            DAY..OLDEST => (DAY, times[index].0 / DAY),
            _ => return true,
        };
        !kept.insert(place)
    };
    order.into_iter().filter(goes).collect()
}

impl Machine {
    /// The checkpoints of its timeline, the oldest first.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn timeline_points(&self) -> Result<Vec<Snapshot>, LibraryError> {
        self.points(super::checkpoints::Kind::Timeline)
    }

    /// Removes checkpoints of the timeline that are too many, or for which there is no space. The newest stays. The caller holds
    /// the machine.
    ///
    /// # Errors
    /// The host refuses something, or `progress` said no. What is kept is whole in any case.
    pub(crate) fn thin_timeline(
        &mut self,
        plan: Timeline,
        running: Option<GoOn<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), LibraryError> {
        let points = self.timeline_points()?;
        let times: Vec<Timestamp> = points.iter().map(|point| point.created).collect();
        for index in too_many(&times, Timestamp::now()) {
            self.delete_snapshot(&points[index].id, running, progress)?;
        }
        while self.saved_size()? > plan.space_mib << 20 {
            let points = self.timeline_points()?;
            let [oldest, _, ..] = points.as_slice() else { return Ok(()) };
            self.delete_snapshot(&oldest.id.clone(), running, progress)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(ages: &[u64], now: u64) -> Vec<Timestamp> {
        ages.iter().map(|age| Timestamp(now - age)).collect()
    }

    /// A timeline that is kept for this long with a checkpoint every ten minutes, thinned each time.
    fn kept_for(seconds: u64) -> (Vec<Timestamp>, Timestamp) {
        let start = 1_700_000_123;
        let mut kept: Vec<Timestamp> = Vec::new();
        let mut now = start;
        while now < start + seconds {
            now += 10 * MINUTE;
            kept.push(Timestamp(now));
            let gone = too_many(&kept, Timestamp(now));
            let mut index = 0;
            kept.retain(|_| {
                index += 1;
                !gone.contains(&(index - 1))
            });
        }
        (kept, Timestamp(now))
    }

    #[test]
    fn the_last_hour_keeps_all_and_the_newest_always_stays() {
        let now = 1_700_000_000;
        assert_eq!(too_many(&times(&[3599, 1200, 600, 0], now), Timestamp(now)), [0usize; 0]);
        assert_eq!(too_many(&times(&[90 * DAY], now), Timestamp(now)), [0usize; 0]);
        assert_eq!(too_many(&times(&[91 * DAY, 90 * DAY], now), Timestamp(now)), [0]);
        // A clock that was set back: what is from tomorrow is new.
        assert_eq!(too_many(&[Timestamp(now + DAY), Timestamp(now)], Timestamp(now)), [0usize; 0]);
    }

    #[test]
    fn a_timeline_gets_thinner_with_age_and_never_has_a_hole() {
        let (kept, now) = kept_for(40 * DAY);
        let ages: Vec<u64> = kept.iter().map(|time| now.0 - time.0).collect();
        let within = |from: u64, to: u64| ages.iter().filter(|age| (from..to).contains(age)).count();
        assert_eq!(within(0, HOUR), 6);
        assert!((22..=25).contains(&within(HOUR, DAY)), "{}", within(HOUR, DAY));
        assert!((28..=30).contains(&within(DAY, OLDEST)), "{}", within(DAY, OLDEST));
        assert_eq!(within(OLDEST, u64::MAX), 0);
        for pair in ages.windows(2) {
            let widest = if pair[1] < HOUR { 2 * HOUR } else { 2 * DAY };
            assert!(pair[0] - pair[1] <= widest, "{pair:?}");
        }
    }

    #[test]
    fn the_next_is_due_after_the_interval_even_where_the_clock_was_set_back() {
        let plan = Timeline::default();
        assert_eq!(plan.due(Timestamp(1000), Timestamp(1000)), 600);
        assert_eq!(plan.due(Timestamp(1000), Timestamp(1599)), 1);
        assert_eq!(plan.due(Timestamp(1000), Timestamp(99_999)), 0);
        assert_eq!(plan.due(Timestamp(99_999), Timestamp(1000)), 0);
    }

    #[test]
    fn numbers_that_make_no_timeline_are_refused() {
        assert_eq!(Timeline::default().validate(), Ok(()));
        for (minutes, space_mib) in [(0, 1 << 10), (1441, 1 << 10), (10, 63)] {
            assert!(Timeline { minutes, space_mib }.validate().is_err());
        }
    }
}
