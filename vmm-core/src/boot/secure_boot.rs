//! Whether a UEFI firmware enforces Secure Boot: told from its image, for no descriptor says so of a build that needs no
//! system management mode.
//!
//! OVMF is a firmware volume (UEFI PI 1.7, volume 3) in whose GUID-defined section (§3.2.5.7) all drivers are, compressed
//! with LZMA. A build with Secure Boot has the driver of its set-up page among them, by the same switch that has images
//! checked before they run.

use std::io::{self, Write};

use lzma_rs::decompress::Options;

/// LZMA_CUSTOM_DECOMPRESS_GUID as it is in memory: EE4E5898-3914-4259-9D6E-DC7BD79403CF.
const LZMA: [u8; 16] = [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
/// SecureBootConfigDxe's file name: F0E6A44F-7195-41C3-AC64-54F202CD0A21.
const SECURE_BOOT_CONFIG: [u8; 16] =
    [0x4f, 0xa4, 0xe6, 0xf0, 0x95, 0x71, 0xc3, 0x41, 0xac, 0x64, 0x54, 0xf2, 0x02, 0xcd, 0x0a, 0x21];
/// EFI_SECTION_GUID_DEFINED.
const GUID_DEFINED: u8 = 2;
/// Its header: size, u24, and type, before the GUID.
const HEADER: usize = 4;
/// The most that a section may hold unpacked. OVMF's has 13 MiB.
const MAX_UNPACKED: usize = 64 << 20;

/// Whether the firmware with this code has Secure Boot.
pub fn is_built_in(code: &[u8]) -> bool {
    places(code, &LZMA).filter_map(|at| section(code, at)).any(|packed| {
        let options = Options { memlimit: Some(MAX_UNPACKED), ..Options::default() };
        let mut unpacked = Bounded(Vec::new());
        let done = lzma_rs::lzma_decompress_with_options(&mut io::Cursor::new(packed), &mut unpacked, &options);
        done.is_ok() && places(&unpacked.0, &SECURE_BOOT_CONFIG).next().is_some()
    })
}

/// Where the GUID is.
fn places<'a>(bytes: &'a [u8], guid: &'a [u8; 16]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(guid.len()).enumerate().filter(move |(_, window)| window == guid).map(|(at, _)| at)
}

/// The data of the GUID-defined section whose GUID is at `at`.
fn section(code: &[u8], at: usize) -> Option<&[u8]> {
    let start = at.checked_sub(HEADER)?;
    let &[a, b, c, kind] = code.get(start..at)? else { return None };
    let size = u32::from_le_bytes([a, b, c, 0]) as usize;
    let offset = at + LZMA.len();
    let &[low, high] = code.get(offset..offset + 2)? else { return None };
    let data = usize::from(u16::from_le_bytes([low, high]));
    if kind != GUID_DEFINED { None } else { code.get(start + data..start + size) }
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_UNPACKED {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume with a section that holds these bytes.
    fn volume(inside: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        lzma_rs::lzma_compress(&mut io::Cursor::new(inside), &mut packed).unwrap();
        let mut volume = vec![0xff; 0x90];
        volume.extend(&((packed.len() + 24) as u32).to_le_bytes()[..3]);
        volume.push(GUID_DEFINED);
        volume.extend(LZMA);
        volume.extend([24, 0, 1, 0]);
        volume.extend(packed);
        volume.extend([0xff; 0x100]);
        volume
    }

    #[test]
    fn secure_boot_is_found_by_its_driver() {
        let with = [&[7; 1000][..], &SECURE_BOOT_CONFIG, &[8; 1000]].concat();
        assert!(is_built_in(&volume(&with)));
        assert!(!is_built_in(&volume(&[7; 5000])));
        assert!(!is_built_in(&with), "what is not in the section is no driver");
    }

    #[test]
    fn damaged_volumes_are_firmware_without_secure_boot() {
        let whole = volume(&SECURE_BOOT_CONFIG);
        for len in [0, 10, 0x93, 0xa0, 0xa8, whole.len() - 0x110] {
            assert!(!is_built_in(&whole[..len]), "{len:#x}");
        }
        for at in 0x90..0xa8 {
            let mut volume = whole.clone();
            volume[at] = 0xff;
            let _ = is_built_in(&volume);
        }
    }
}
