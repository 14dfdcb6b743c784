//! What a test's script says of its checks: a line `ok WHAT` or `FAILED WHAT` for each.

use anyhow::{Result, ensure};

use crate::nested::last_lines;

/// Expects these checks to have passed, in this order, and none to have failed. The error shows what was said last.
pub fn expect(said: &str, expected: &[&str]) -> Result<()> {
    let lines = || said.lines().map(str::trim_end);
    let failed: Vec<&str> = lines().filter(|line| line.starts_with("FAILED")).collect();
    let passed: Vec<&str> = lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    ensure!(
        failed.is_empty() && passed == expected,
        "the checks that passed are {passed:?}, not {expected:?}; failed: {failed:?}; what was said last:\n{}",
        last_lines(said)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_must_have_passed_in_its_order_and_none_failed() {
        assert!(expect("ok one\r\nsomething else\nok two\n", &["one", "two"]).is_ok());
        for said in ["ok one\n", "ok two\nok one\n", "ok one\nok two\nFAILED three\n", "ok one\nok two\nok three\n"] {
            let error = expect(said, &["one", "two"]).unwrap_err().to_string();
            assert!(error.ends_with(said), "{error}");
        }
    }
}
