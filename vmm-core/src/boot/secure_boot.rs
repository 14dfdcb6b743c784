//! Whether a UEFI firmware enforces Secure Boot: told from its image, for no descriptor says so of a build that needs no
//! system management mode; and whether its variables hold the keys without which nothing is checked.
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

/// The signature of a store of authenticated variables (EDK II's `AuthenticatedVariableFormat.h`):
/// AAF32C78-947B-439A-A180-2E144EC37792.
const STORE: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// Bytes of the store's header, and of a variable's before its name.
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;
/// EFI_GLOBAL_VARIABLE: 8BE4DF61-93CA-11D2-AA0D-00E098032B8C.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// The platform key's name, UTF-16: while there is one, images are checked (UEFI 2.10 §32.3).
const PLATFORM_KEY: [u8; 6] = *b"P\0K\0\0\0";

/// Whether a variable store has a platform key.
pub fn has_keys(store: &[u8]) -> bool {
    let Some(start) = places(store, &STORE).next() else { return false };
    let word = |at: usize| match store.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => 0,
    };
    let mut at = start + STORE_HEADER;
    // A variable begins with 0x55aa; what is erased, or damaged, ends the list. Each step is a header at least.
    while store.get(at..at + 2) == Some(&[0xaa, 0x55]) {
        let state = store.get(at + 2).copied().unwrap_or(0xff);
        let (name, data) = (word(at + 36), word(at + 40));
        let body = at + VARIABLE_HEADER;
        // Added (0x3f), or about to be replaced by one that may not be there (0x3e).
        if matches!(state, 0x3e | 0x3f)
            && store.get(at + 44..body) == Some(&GLOBAL)
            && name == PLATFORM_KEY.len()
            && store.get(body..body + name) == Some(&PLATFORM_KEY)
        {
            return data > 0;
        }
        at = body.saturating_add(name).saturating_add(data).min(store.len()).next_multiple_of(4);
    }
    false
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

    /// A store with one variable.
    fn store(state: u8, name: &str, data: usize) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let mut bytes = vec![0xee; 0x48];
        bytes.extend(STORE);
        bytes.resize(0x48 + STORE_HEADER, 0);
        for (name, state) in [(b"A\0\0\0".to_vec(), 0x3f), (name, state)] {
            let start = bytes.len();
            bytes.extend([0xaa, 0x55, state, 0]);
            bytes.resize(start + 36, 0);
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend((data as u32).to_le_bytes());
            bytes.extend(GLOBAL);
            bytes.extend(name);
            bytes.resize((bytes.len() + data).next_multiple_of(4), 7);
        }
        bytes.resize(bytes.len() + 100, 0xff);
        bytes
    }

    #[test]
    fn keys_are_there_when_a_platform_key_is() {
        assert!(has_keys(&store(0x3f, "PK", 33)));
        assert!(has_keys(&store(0x3e, "PK", 33)));
        assert!(!has_keys(&store(0x3d, "PK", 33)), "a deleted key");
        assert!(!has_keys(&store(0x3f, "PK", 0)));
        assert!(!has_keys(&store(0x3f, "KEK", 33)));
        assert!(!has_keys(&[]));
    }

    #[test]
    fn no_store_however_damaged_panics_or_hangs() {
        let whole = store(0x3f, "PK", 33);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xff);
            has_keys(&bytes);
            has_keys(&whole[..at]);
        }
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
