//! Foreign images as QEMU makes them, and as nobody should.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::backend::disk::open::{Identity, identify};

/// A disk with data, holes, and zeroes, of no whole number of anything.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0u8; (9 << 20) + 5 * 512];
    let mut state = 1u32;
    for (at, byte) in bytes.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (at >> 18) % 5 == 1 || at > 9 << 20 {
            *byte = (state >> 24) as u8;
        } else if (at >> 18) % 5 == 3 {
            *byte = (at >> 12) as u8;
        }
    }
    bytes
}

fn folder() -> tempfile::TempDir {
    let built = std::env::current_exe().unwrap();
    tempfile::tempdir_in(built.parent().unwrap()).unwrap()
}

fn convert(folder: &Path, raw: &Path, name: &str, format: &str, options: &str) -> PathBuf {
    let path = folder.join(name);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", format]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    let output = command.arg(raw).arg(&path).output().expect("qemu-img is needed: './dev setup test'");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

const KINDS: [(&str, &str, &str, Foreign); 12] = [
    ("sparse.vmdk", "vmdk", "subformat=monolithicSparse", Foreign::Vmdk),
    ("stream.vmdk", "vmdk", "subformat=streamOptimized", Foreign::Vmdk),
    ("flat.vmdk", "vmdk", "subformat=monolithicFlat", Foreign::Vmdk),
    ("twogb.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse", Foreign::Vmdk),
    ("twogbflat.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat", Foreign::Vmdk),
    ("zeroed.vmdk", "vmdk", "subformat=monolithicSparse,zeroed_grain=on", Foreign::Vmdk),
    ("dynamic.vdi", "vdi", "", Foreign::Vdi),
    ("fixed.vdi", "vdi", "static=on", Foreign::Vdi),
    ("dynamic.vhd", "vpc", "subformat=dynamic,force_size=on", Foreign::Vhd),
    ("fixed.vhd", "vpc", "subformat=fixed,force_size=on", Foreign::Vhd),
    ("dynamic.vhdx", "vhdx", "subformat=dynamic,block_size=1M", Foreign::Vhdx),
    ("fixed.vhdx", "vhdx", "subformat=fixed", Foreign::Vhdx),
];

#[test]
fn images_by_qemu_are_read_as_they_were_written() {
    let folder = folder();
    let (raw, bytes) = (folder.path().join("disk.raw"), disk());
    fs::write(&raw, &bytes).unwrap();
    for (name, format, options, kind) in KINDS {
        let path = convert(folder.path(), &raw, name, format, options);
        assert_eq!(identify(&path).unwrap(), Identity::Foreign(kind), "{name}");
        let mut disk = ForeignDisk::open(&path, kind).unwrap_or_else(|error| panic!("{name}: {error}"));
        // VHDX and VMDK count in larger units; what is added is zeroes.
        assert!(disk.size() >= bytes.len() as u64 && disk.size() < bytes.len() as u64 + (1 << 20), "{name}");
        let mut seen = vec![1; disk.size() as usize];
        disk.read(0, &mut seen).unwrap();
        assert!(seen[..bytes.len()] == bytes && seen[bytes.len()..].iter().all(|b| *b == 0), "{name}");
        let mut part = vec![1; 1000];
        disk.read(0x4_0001, &mut part).unwrap();
        assert!(part == bytes[0x4_0001..][..1000], "{name}");
        let mut offset = 0;
        while offset < disk.size() {
            let (data, len) = disk.extent(offset).unwrap();
            let end = ((offset + len) as usize).min(bytes.len());
            let all_zero = bytes.get(offset as usize..end).is_none_or(|b| b.iter().all(|byte| *byte == 0));
            assert!(data || all_zero, "{name}: data at {offset} is said to be none");
            offset += len;
        }
    }
}

#[test]
fn machines_refuse_foreign_images_and_say_what_to_do() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, disk()).unwrap();
    for (name, format, options, kind) in KINDS {
        let path = convert(folder.path(), &raw, name, format, options);
        let options = OpenOptions { readonly: true, direct: false };
        let error = crate::backend::disk::open(&path, options).map(drop).unwrap_err();
        let OpenError::Format { source, .. } = error else { panic!("{name}: {error}") };
        assert!(source.to_string().contains("convert it first") && source.to_string().contains(kind.name()));
    }
}

fn refused(path: &Path, kind: Foreign, words: &str) {
    let error = ForeignDisk::open(path, kind).map(drop).unwrap_err();
    let text = match error {
        OpenError::Format { source, .. } => source.to_string(),
        error => error.to_string(),
    };
    assert!(text.contains(words), "{text:?} says nothing of {words:?}");
}

#[test]
fn images_that_stand_on_others_or_lead_elsewhere_are_refused_in_words() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, disk()).unwrap();
    let change = |name: &str, at: usize, bytes: &[u8]| {
        let path = folder.path().join(name);
        let mut all = fs::read(&path).unwrap();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, all).unwrap();
        path
    };
    convert(folder.path(), &raw, "a.vdi", "vdi", "");
    refused(&change("a.vdi", 0x4c, &4u32.to_le_bytes()), Foreign::Vdi, "difference");
    convert(folder.path(), &raw, "a.vmdk", "vmdk", "");
    let text = fs::read(folder.path().join("a.vmdk")).unwrap();
    let at = text.windows(10).position(|w| w == b"parentCID=").unwrap() + 10;
    refused(&change("a.vmdk", at, b"12345678"), Foreign::Vmdk, "snapshot");
    // An extent must not lead to the host's files.
    let evil = folder.path().join("evil.vmdk");
    fs::write(&evil, "# Disk DescriptorFile\nparentCID=ffffffff\nRW 8 FLAT \"../../etc/passwd\" 0\n").unwrap();
    refused(&evil, Foreign::Vmdk, "outside its own folder");
    fs::write(&evil, "# Disk DescriptorFile\nRW 99999999999999999999 FLAT \"x\" 0\n").unwrap();
    refused(&evil, Foreign::Vmdk, "line");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a file says, it is read or refused: in bounded time and memory, and without a panic.
    #[test]
    fn damaged_images_are_read_or_refused(
        which in 0..KINDS.len(),
        changes in prop::collection::vec((0..4096usize, any::<u32>(), any::<bool>()), 1..8),
        cut in prop::option::of(0..1u64 << 20),
    ) {
        static IMAGES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        let images = IMAGES.get_or_init(|| {
            let folder = folder();
            let raw = folder.path().join("disk.raw");
            fs::write(&raw, &disk()[..3 << 20]).unwrap();
            let make = |(name, format, options, _)| fs::read(convert(folder.path(), &raw, name, format, options)).unwrap();
            KINDS.into_iter().map(make).collect()
        });
        let mut bytes = images[which].clone();
        for (at, value, far) in changes {
            // Mostly headers and what follows them.
            let at = if far { at << 6 } else { at >> 2 };
            if let Some(place) = bytes.get_mut(at..at + 4) {
                let small = value >> (value % 32);
                place.copy_from_slice(&small.to_le_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        let folder = folder();
        let path = folder.path().join(KINDS[which].0);
        fs::write(&path, bytes).unwrap();
        if let Ok(mut disk) = ForeignDisk::open(&path, KINDS[which].3) {
            let mut part = vec![0; 8192];
            for offset in [0, 65536, disk.size() / 2, disk.size().saturating_sub(4096)] {
                let _ = disk.extent(offset.min(disk.size() - 1));
                let _ = disk.read(offset, &mut part);
            }
        }
    }
}
