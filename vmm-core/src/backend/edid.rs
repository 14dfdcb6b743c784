//! The monitor's description of itself that guests choose a mode from: VESA E-EDID 1.4 with one CTA-861 extension.

use super::display::Mode;

/// A block of an EDID, bytes.
const BLOCK: usize = 128;
/// Refresh rate of all modes, Hz.
const REFRESH: u32 = 60;
/// The size of a pixel that the monitor claims, in hundredths of a millimetre: about 96 dots an inch.
const PIXEL_PITCH: u32 = 26;
/// The least and most that a detailed timing can say (12 bits), rounded to what drivers take.
const SMALLEST: Mode = Mode { width: 320, height: 200 };
const LARGEST: Mode = Mode { width: 4088, height: 4088 };

/// Modes beside the preferred one that standard timings (E-EDID 1.4 §3.9) can name, by their aspect code.
const STANDARD: [(u32, u8); 8] = [
    (640, ASPECT_4_3),
    (800, ASPECT_4_3),
    (1024, ASPECT_4_3),
    (1280, ASPECT_16_9),
    (1280, ASPECT_5_4),
    (1440, ASPECT_16_10),
    (1680, ASPECT_16_10),
    (1920, ASPECT_16_9),
];
const ASPECT_16_10: u8 = 0;
const ASPECT_4_3: u8 = 1;
const ASPECT_5_4: u8 = 2;
const ASPECT_16_9: u8 = 3;

/// Modes that are too large, or of another shape, for a standard timing: detailed ones in the extension.
const DETAILED: [Mode; 5] = [
    Mode { width: 1366, height: 768 },
    Mode { width: 1920, height: 1200 },
    Mode { width: 2560, height: 1440 },
    Mode { width: 2560, height: 1600 },
    Mode { width: 3840, height: 2160 },
];

/// The nearest mode to `mode` that an EDID can name, and a guest's driver takes.
pub fn fit(mode: Mode) -> Mode {
    Mode {
        width: mode.width.clamp(SMALLEST.width, LARGEST.width),
        height: mode.height.clamp(SMALLEST.height, LARGEST.height),
    }
}

/// The EDID of a monitor that would best like `preferred`, or what is nearest to it: 256 bytes.
pub fn edid(preferred: Mode) -> Vec<u8> {
    let preferred = fit(preferred);
    let mut edid = base_block(preferred).to_vec();
    edid.extend(extension());
    edid
}

fn base_block(preferred: Mode) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Manufacturer "ORG", product 1, made in week 0 of 2026.
    block[8..10].copy_from_slice(&manufacturer(*b"ORG").to_be_bytes());
    block[10] = 1;
    block[17] = (2026 - 1990) as u8;
    // Version 1.4; digital, 8 bits a colour, no particular interface.
    block[18..21].copy_from_slice(&[1, 4, 0b1010_0000]);
    let centimetres = |pixels: u32| (pixels * PIXEL_PITCH / 1000).clamp(1, 255) as u8;
    block[21..23].copy_from_slice(&[centimetres(preferred.width), centimetres(preferred.height)]);
    // Gamma 2.2; RGB, sRGB is the default colour space, the first timing is native, any timing goes.
    block[23..25].copy_from_slice(&[120, 0b0000_0111]);
    // Chromaticities of sRGB.
    block[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // Established: 640x480, 800x600 and 1024x768 at 60 Hz.
    block[35..38].copy_from_slice(&[0x21, 0x08, 0]);
    for (slot, (width, aspect)) in block[38..54].chunks_exact_mut(2).zip(STANDARD) {
        slot.copy_from_slice(&[(width / 8 - 31) as u8, aspect << 6 | (REFRESH - 60) as u8]);
    }
    block[54..72].copy_from_slice(&timing(preferred));
    block[72..90].copy_from_slice(&text_descriptor(0xfc, "Orangery"));
    block[90..108].copy_from_slice(&range_limits());
    block[108..126].copy_from_slice(&text_descriptor(0xfe, "virtual display"));
    block[126] = 1;
    block[127] = checksum(&block);
    block
}

/// A CTA-861 extension (revision 3) with nothing but detailed timings.
fn extension() -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..4].copy_from_slice(&[2, 3, 4, 0]);
    for (slot, mode) in block[4..].chunks_exact_mut(18).zip(DETAILED) {
        slot.copy_from_slice(&timing(mode));
    }
    block[127] = checksum(&block);
    block
}

fn checksum(block: &[u8; BLOCK]) -> u8 {
    block[..BLOCK - 1].iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

/// Three letters in 5 bits each, A is 1.
fn manufacturer(letters: [u8; 3]) -> u16 {
    letters.iter().fold(0, |id, letter| id << 5 | u16::from(letter - b'A' + 1))
}

/// A detailed timing descriptor (E-EDID 1.4 §3.10.2) with the blanking of a reduced-blanking mode.
fn timing(mode: Mode) -> [u8; 18] {
    let Mode { width, height } = mode;
    let (h_blank, h_front, h_sync) = (160, 48, 32);
    let (v_front, v_sync) = (3, 6);
    // At least 460 microseconds of vertical blanking.
    let v_blank = (height * 460 * REFRESH).div_ceil(1_000_000 - 460 * REFRESH).max(v_front + v_sync + 6);
    let clock = ((width + h_blank) * (height + v_blank) * REFRESH).div_ceil(10_000).min(0xffff);
    let millimetres = |pixels: u32| pixels * PIXEL_PITCH / 100;
    let (h_size, v_size) = (millimetres(width), millimetres(height));
    let high = |value: u32| (value >> 8) as u8;
    let mut out = [0; 18];
    out[..2].copy_from_slice(&(clock as u16).to_le_bytes());
    out[2..5].copy_from_slice(&[width as u8, h_blank as u8, high(width) << 4 | high(h_blank)]);
    out[5..8].copy_from_slice(&[height as u8, v_blank as u8, high(height) << 4 | high(v_blank)]);
    out[8..12].copy_from_slice(&[h_front as u8, h_sync as u8, (v_front << 4 | v_sync) as u8, 0]);
    out[12..15].copy_from_slice(&[h_size as u8, v_size as u8, high(h_size) << 4 | high(v_size)]);
    // Digital separate sync, horizontal positive.
    out[17] = 0b0001_1010;
    out
}

/// A display descriptor (E-EDID 1.4 §3.10.3) with up to 13 characters.
fn text_descriptor(tag: u8, text: &str) -> [u8; 18] {
    let mut out = [b' '; 18];
    out[..5].copy_from_slice(&[0, 0, 0, tag, 0]);
    let bytes = &text.as_bytes()[..text.len().min(13)];
    out[5..5 + bytes.len()].copy_from_slice(bytes);
    if let Some(end) = out.get_mut(5 + bytes.len()) {
        *end = b'\n';
    }
    out
}

/// What the monitor can take: 50 to 75 Hz, 15 to 255 kHz, 660 MHz; range limits only.
fn range_limits() -> [u8; 18] {
    let mut out = [b' '; 18];
    out[..12].copy_from_slice(&[0, 0, 0, 0xfd, 0, 50, 75, 15, 255, 66, 1, b'\n']);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width, height, totals and clock of a detailed timing, as a driver reads them.
    fn parse(timing: &[u8]) -> (Mode, u32, u32, u32) {
        let join = |low: u8, high: u8| u32::from(low) | u32::from(high) << 8;
        let mode = Mode { width: join(timing[2], timing[4] >> 4), height: join(timing[5], timing[7] >> 4) };
        let (h, v) = (join(timing[3], timing[4] & 15), join(timing[6], timing[7] & 15));
        (mode, mode.width + h, mode.height + v, 10_000 * join(timing[0], timing[1]))
    }

    #[test]
    fn every_block_sums_to_zero_and_the_first_timing_is_the_preferred_mode() {
        for (width, height) in [(640, 480), (1280, 800), (1920, 1080), (3840, 2160), (1023, 577)] {
            let edid = edid(Mode { width, height });
            assert_eq!(edid.len(), 256);
            for block in edid.chunks(BLOCK) {
                assert_eq!(block.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)), 0);
            }
            let (mode, h_total, v_total, clock) = parse(&edid[54..72]);
            assert_eq!(mode, Mode { width, height });
            let rate = f64::from(clock) / f64::from(h_total) / f64::from(v_total);
            assert!((59.9..60.1).contains(&rate), "{rate} Hz");
        }
    }

    #[test]
    fn the_extension_offers_the_large_modes_in_full() {
        let edid = edid(Mode { width: 1280, height: 800 });
        let offered: Vec<Mode> = edid[BLOCK + 4..].chunks_exact(18).take(DETAILED.len()).map(|t| parse(t).0).collect();
        assert_eq!(offered, DETAILED);
        assert_eq!(&edid[77..86], b"Orangery\n");
    }

    #[test]
    fn a_mode_beyond_the_format_is_brought_into_its_range() {
        for (wanted, got) in [((1, 1), SMALLEST), ((u32::MAX, u32::MAX), LARGEST)] {
            let edid = edid(Mode { width: wanted.0, height: wanted.1 });
            assert_eq!(parse(&edid[54..72]).0, got);
        }
    }
}
