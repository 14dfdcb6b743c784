//! What went wrong, in words for a person.

use std::error::Error;

/// An error's text, and after it those of all its causes: errors here never repeat their cause.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layered(&'static str, #[source] Option<Box<Layered>>);

    #[test]
    fn all_causes_are_told_in_order() {
        let error = Layered("it failed", Some(Box::new(Layered("the disk", Some(Box::new(Layered("is full", None)))))));
        assert_eq!(explain(&error), "it failed: the disk: is full");
        assert_eq!(explain(&Layered("alone", None)), "alone");
    }
}
