//! What a virtual machine may be called, and the folder its name leads to.

use super::LibraryError;

/// The longest name, characters.
pub const MAX_NAME: usize = 100;
/// The longest folder name, bytes: file systems allow 255, and paths are shown to people.
const MAX_SLUG: usize = 60;

/// Checks what a person typed and returns the name: without white space around it, and otherwise as it was typed.
///
/// # Errors
/// It is empty, too long, or has characters that nobody sees (control characters, text direction overrides).
pub fn check(typed: &str) -> Result<String, LibraryError> {
    let name = typed.trim();
    let refuse = |problem: &str| Err(LibraryError::Name { name: name.into(), problem: problem.into() });
    if name.is_empty() {
        return refuse("it has no visible character");
    }
    if name.chars().count() > MAX_NAME {
        return refuse(&format!("it is longer than {MAX_NAME} characters"));
    }
    if let Some(c) = name.chars().find(|&c| is_invisible(c)) {
        return refuse(&format!("it has a character that nobody sees (U+{:04X})", u32::from(c)));
    }
    if !name.chars().any(char::is_alphanumeric) {
        return refuse("it has no letter or digit");
    }
    Ok(name.into())
}

/// Control characters, line and paragraph separators, zero-width spaces and direction overrides.
fn is_invisible(c: char) -> bool {
    c.is_control() || matches!(u32::from(c), 0x200b | 0x200e | 0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff)
}

/// Whether two names are the same to a person: letter case makes no difference.
pub fn same(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

/// A folder name for a machine's name: lower-case letters and digits of any script, joined by single hyphens.
pub fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        if slug.len() + c.len_utf8() > MAX_SLUG {
            break;
        }
        if c.is_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "machine".into() } else { slug.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_people_use_are_allowed_and_kept() {
        for name in ["Debian 12", "münchen", "テスト機", "a/b (copy)", "C:\\dos", "-v", "x'; rm \"y\"", "..1"] {
            assert_eq!(check(name).unwrap(), name);
        }
        assert_eq!(check("  Debian 12\n").unwrap(), "Debian 12");
    }

    #[test]
    fn names_that_nobody_could_tell_apart_are_refused() {
        for name in ["", "   ", "...", "a\u{202e}b", "a\nb", "a\u{200b}b", "\u{7}a"] {
            assert!(check(name).is_err(), "{name:?}");
        }
        assert!(check(&"x".repeat(MAX_NAME)).is_ok());
        assert!(check(&"x".repeat(MAX_NAME + 1)).is_err());
    }

    #[test]
    fn a_slug_is_readable() {
        assert_eq!(slug("Debian GNU/Linux 12.8.0 amd64"), "debian-gnu-linux-12-8-0-amd64");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("テスト 1"), "テスト-1");
        assert_eq!(slug("!!!"), "machine");
    }

    proptest! {
        #[test]
        fn any_name_makes_a_safe_folder_name(name in "\\PC{0,200}") {
            let slug = slug(&name);
            prop_assert!(!slug.is_empty() && slug.len() <= MAX_SLUG);
            prop_assert!(slug.chars().all(|c| c.is_alphanumeric() || c == '-'));
            prop_assert!(!slug.starts_with('-') && !slug.ends_with('-') && !slug.contains("--"));
            prop_assert_eq!(super::slug(&slug), slug);
        }
    }
}
