//! What a person is told about requests that failed on the host: each reason once, until another comes.

use super::DiskError;

/// See the module.
#[derive(Debug, Default)]
pub struct Complaints {
    last: Option<String>,
}

impl Complaints {
    /// The words for a failure; `None` where they were said last already.
    pub fn about(&mut self, error: &DiskError) -> Option<String> {
        let message = match error {
            DiskError::Full => {
                format!("{error}; the guest was told that its write failed: free some space before it goes on")
            }
            error => format!("a request of the guest failed: {error}"),
        };
        if self.last.as_ref() == Some(&message) {
            return None;
        }
        self.last = Some(message.clone());
        Some(message)
    }

    /// Starts afresh: a new run of the guest.
    pub fn reset(&mut self) {
        self.last = None;
    }
}
