//! Sizes as people write and read them: `40G`, `512 MiB`; always powers of 1024.

/// The units, each 1024 of the one before.
const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// Reads a size: a number, perhaps with a fraction, and `K`, `M`, `G` or `T` (with or without `B` or `iB`, in any case).
/// A number alone is bytes.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it like 40G, 512M or 1.5T");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (number.contains('.') && (!digits(fraction) || fraction.len() > 9 || shift == 0)) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
    let part = (part << shift) / 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let bytes = (u128::from(whole) << shift) + part;
    u64::try_from(bytes).map_err(|_| format!("{text:?} is more than any disk holds"))
}

/// Writes a size for a person: at most three digits and a unit, `40 GiB`, `1.5 TiB`.
pub fn human(bytes: u64) -> String {
    let mut unit = 0;
    let mut rest = bytes as f64;
    while rest >= 1023.5 && unit + 1 < UNITS.len() {
        rest /= 1024.0;
        unit += 1;
    }
    let name = UNITS[unit];
    if unit == 0 || rest >= 99.95 || (rest - rest.round()).abs() < 0.05 {
        format!("{} {name}", rest.round())
    } else {
        format!("{rest:.1} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("512 MiB", 512 << 20),
            ("40G", 40 << 30),
            ("1.5T", 3 << 39),
            (" 0.5gb ", 1 << 29),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_in_words() {
        for text in ["", "G", "-1G", "1.G", ".5G", "1.5", "4X", "1 2", "1e9", "99999999999T", "0x10", "٣G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (40 << 30, "40 GiB"),
            (3 << 39, "1.5 TiB"),
            ((1 << 30) - 1, "1 GiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn nothing_a_person_types_panics(text in "\\PC{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_reads_back_within_its_rounding(bytes in 0u64..1 << 50) {
            let back = parse(&human(bytes)).unwrap() as f64;
            prop_assert!((back - bytes as f64).abs() <= bytes as f64 * 0.06 + 0.5);
        }
    }
}
