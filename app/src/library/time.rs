//! A point in time as the library keeps it: seconds, UTC, written as RFC 3339 (`2026-05-04T12:30:00Z`).

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub u64);

/// The last second that has a year of four digits.
const LAST: u64 = 253_402_300_799;

impl Timestamp {
    /// The host's clock.
    pub fn now() -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }
}

impl Timestamp {
    /// As the clock of the person's wall has it: `2026-05-04 12:30`.
    pub fn local(self) -> String {
        let seconds = libc::time_t::try_from(self.0.min(LAST)).unwrap_or(0);
        // SAFETY: the call only reads and writes the values it is given; `tm` is plain data for which zero is valid.
        let tm = unsafe {
            let mut tm: libc::tm = std::mem::zeroed();
            libc::localtime_r(&raw const seconds, &raw mut tm);
            tm
        };
        let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
        format!("{year}-{month:02}-{:02} {:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min)
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar (counted in years that begin in March, so that
/// the leap day is the last).
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month < 3 { year - 1 } else { year };
    let month = (month + 9) % 12;
    year * 365 + year / 4 - year / 100 + year / 400 + (month * 306 + 5) / 10 + day - 1 - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.min(LAST);
        let (day, time) = (seconds / 86_400, seconds % 86_400);
        let mut year = 1970 + day / 366;
        while days(year + 1, 1, 1) <= day {
            year += 1;
        }
        let month = (1..=12).rev().find(|&m| days(year, m, 1) <= day).unwrap_or(1);
        let date = day - days(year, month, 1) + 1;
        write!(f, "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
    }
}

impl FromStr for Timestamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Timestamp, String> {
        let bad = || format!("{text:?} is no time; write it like 2026-05-04T12:30:00Z");
        let shape = text.bytes().map(|b| if b.is_ascii_digit() { b'0' } else { b });
        if !shape.eq(*b"0000-00-00T00:00:00Z") {
            return Err(bad());
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().map_err(|_| bad());
        let (year, month, date) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        if year < 1970
            || !(1..=12).contains(&month)
            || !(1..=31).contains(&date)
            || hour > 23
            || minute > 59
            || second > 59
        {
            return Err(bad());
        }
        let time = Timestamp(days(year, month, date) * 86_400 + hour * 3600 + minute * 60 + second);
        // A date that does not exist (31 April) comes out as another one.
        if time.to_string() == text { Ok(time) } else { Err(bad()) }
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;
    fn try_from(text: String) -> Result<Timestamp, String> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (LAST, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in ["", "2026-04-31T00:00:00Z", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-01-01 00:00:00Z"]
        {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_round_trips(seconds in 0..=LAST) {
            prop_assert_eq!(Timestamp(seconds).to_string().parse(), Ok(Timestamp(seconds)));
        }
    }
}
