//! Skipped tests, counted. Rust's test harness has no notion of a test that could not run, so a test that skips says why
//! here; `./dev test` prints the list at the end and decides whether it is acceptable.

use std::fs::OpenOptions;
use std::io::Write;

/// Records that the test could not run its `tier` (1 to 4, see docs/testing.md) and why. `./dev test` names the file in
/// `ORANGERY_SKIPS`; without it the reason is only printed.
pub fn skip(tier: u8, test: &str, reason: &str) {
    eprintln!("SKIPPED (tier {tier}) {test}: {reason}");
    let Some(path) = std::env::var_os("ORANGERY_SKIPS") else { return };
    let line = format!("{tier}\t{test}\t{reason}\n");
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut f| f.write_all(line.as_bytes()));
    if let Err(error) = written {
        // A skip that is not counted would pass for a success.
        panic!("could not record a skipped test in {}: {error}", path.display());
    }
}
