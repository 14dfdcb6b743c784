//! Images whose log is not replayed, read beside QEMU, which replays it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::{Foreign, ForeignDisk};
use super::*;
use crate::backend::disk::image::OpenError;

const ID: [u8; 16] = [7; 16];
const SIZE: u64 = 16 * MIB;
/// Where QEMU puts things in an image it makes.
const LOG: usize = MIB as usize;
const LOG_LEN: usize = MIB as usize;
const SECTOR: usize = 4096;

/// Runs a program of QEMU's and returns what it printed.
fn qemu(program: &str, args: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(args).arg(path).output().expect("needed: './dev setup test'");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn seal(bytes: &mut [u8]) {
    let sum = crc(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// What one descriptor says.
enum Change<'a> {
    Zero(u64, u64),
    Data(u64, &'a [u8]),
}

/// An entry of the log.
fn entry(number: u64, tail: usize, flushed: u64, last: u64, changes: &[Change<'_>]) -> Vec<u8> {
    let head = (64 + 32 * changes.len()).next_multiple_of(SECTOR);
    let mut bytes = vec![0; head];
    bytes[..4].copy_from_slice(b"loge");
    bytes[12..16].copy_from_slice(&(tail as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..28].copy_from_slice(&(changes.len() as u32).to_le_bytes());
    bytes[32..48].copy_from_slice(&ID);
    bytes[48..56].copy_from_slice(&flushed.to_le_bytes());
    bytes[56..64].copy_from_slice(&last.to_le_bytes());
    for (i, change) in changes.iter().enumerate() {
        let at = 64 + 32 * i;
        bytes[at + 24..at + 32].copy_from_slice(&number.to_le_bytes());
        match change {
            Change::Zero(offset, len) => {
                bytes[at..at + 4].copy_from_slice(b"zero");
                bytes[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
                bytes[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
            }
            Change::Data(offset, sector) => {
                bytes[at..at + 4].copy_from_slice(b"desc");
                bytes[at + 4..at + 8].copy_from_slice(&sector[SECTOR - 4..]);
                bytes[at + 8..at + 16].copy_from_slice(&sector[..8]);
                bytes[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
                bytes.extend_from_slice(b"data");
                bytes.extend_from_slice(&((number >> 32) as u32).to_le_bytes());
                bytes.extend_from_slice(&sector[8..SECTOR - 4]);
                bytes.extend_from_slice(&(number as u32).to_le_bytes());
            }
        }
    }
    let len = bytes.len() as u32;
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// An image with data in it, as it is without its table of blocks, and that table's first sector.
struct Image {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    bat: u64,
    table: Vec<u8>,
}

impl Image {
    fn new() -> Image {
        let built = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
        let path = folder.path().join("disk.vhdx");
        qemu("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=1M,size=16M"], &path);
        let writes = ["-f", "vhdx", "-c", "write -P 0xaa 0 1M", "-c", "write -P 0xbb 5M 3M"];
        qemu("qemu-io", &writes, &path);
        let mut bytes = fs::read(&path).unwrap();
        let (bat, _) = find_regions(&Words(&bytes[192 << 10..256 << 10])).unwrap();
        let place = &mut bytes[bat.0 as usize..][..SECTOR];
        let table = place.to_vec();
        place.fill(0);
        for header in [64 << 10, 128 << 10] {
            bytes[header + 48..header + 64].copy_from_slice(&ID);
            seal(&mut bytes[header..header + 4096]);
        }
        bytes[LOG..LOG + LOG_LEN].fill(0);
        Image { folder, bytes, bat: bat.0, table }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Puts an entry into the log, going on at its start.
    fn log(&mut self, at: usize, entry: &[u8]) {
        for (i, byte) in entry.iter().enumerate() {
            self.bytes[LOG + (at + i) % LOG_LEN] = *byte;
        }
    }

    fn open(&self) -> Result<ForeignDisk, OpenError> {
        let path = self.folder.path().join("disk.vhdx");
        fs::write(&path, &self.bytes).unwrap();
        ForeignDisk::open(&path, Foreign::Vhdx)
    }

    /// What we read, which must be what QEMU reads after it replayed the log.
    fn read(&self) -> Vec<u8> {
        let mut disk = self.open().unwrap();
        assert_eq!(disk.size(), SIZE);
        let mut ours = vec![1; SIZE as usize];
        disk.read(0, &mut ours).unwrap();
        drop(disk);
        let path = self.folder.path().join("disk.vhdx");
        assert!(fs::read(&path).unwrap() == self.bytes, "reading changes nothing");
        let (copy, raw) = (self.folder.path().join("copy.vhdx"), self.folder.path().join("copy.raw"));
        fs::copy(&path, &copy).unwrap();
        qemu("qemu-img", &["check", "-q", "-r", "all", "-f", "vhdx"], &copy);
        qemu("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", copy.to_str().unwrap()], &raw);
        assert!(fs::read(&raw).unwrap() == ours, "QEMU reads something else");
        ours
    }

    fn refused(&self, words: &str) {
        let error = self.open().map(drop).unwrap_err();
        let OpenError::Format { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(words), "{source} says nothing of {words:?}");
    }
}

/// Whether the data is there that was written.
fn is_written(disk: &[u8]) -> bool {
    let at = |mib: usize| &disk[mib << 20..(mib + 1) << 20];
    let data = at(0).iter().all(|b| *b == 0xaa) && (5..8).all(|mib| at(mib).iter().all(|b| *b == 0xbb));
    data && (1..5).chain(8..16).all(|mib| at(mib).iter().all(|b| *b == 0))
}

#[test]
fn a_table_that_is_only_in_the_log_is_read_from_there() {
    let mut image = Image::new();
    let data = entry(9, 0, image.len(), image.len(), &[Change::Data(image.bat, &image.table)]);
    image.log(0, &data);
    assert!(is_written(&image.read()));
}

#[test]
fn a_log_in_which_nothing_was_written_changes_nothing() {
    let mut image = Image::new();
    let mut disk = image.open().unwrap();
    let mut ours = vec![1; SIZE as usize];
    disk.read(0, &mut ours).unwrap();
    assert!(ours.iter().all(|b| *b == 0), "its table is gone");
    drop(disk);
    // Nor does an entry that is torn, or another image's.
    let mut torn = entry(9, 0, image.len(), image.len(), &[Change::Data(image.bat, &image.table)]);
    torn[2 * SECTOR - 100] ^= 1;
    image.log(0, &torn);
    let mut other = entry(9, 0, image.len(), image.len(), &[Change::Data(image.bat, &image.table)]);
    other[32] = 8;
    seal(&mut other);
    image.log(4 * SECTOR, &other);
    image.open().unwrap().read(0, &mut ours).unwrap();
    assert!(ours.iter().all(|b| *b == 0));
}

#[test]
fn the_newest_whole_sequence_counts_also_around_the_logs_end() {
    let mut image = Image::new();
    let (bat, len) = (image.bat, image.len());
    let nothing = vec![0xff; SECTOR];
    // An older sequence that says something else.
    let old = entry(3, 64 * SECTOR, len, len, &[Change::Data(bat, &nothing)]);
    image.log(64 * SECTOR, &old);
    // Three entries, the first one around the end: nonsense, zeroes over it, and the table.
    let start = LOG_LEN - SECTOR;
    let first = entry(1 << 40, start, len, len, &[Change::Data(bat, &nothing)]);
    image.log(start, &first);
    let second = entry((1 << 40) + 1, start, len, len, &[Change::Zero(bat, 64 << 10)]);
    image.log(SECTOR, &second);
    let table = image.table.clone();
    let third = entry((1 << 40) + 2, start, len, len, &[Change::Data(bat, &table)]);
    image.log(2 * SECTOR, &third);
    // A fourth was not written to its end.
    let fourth = entry((1 << 40) + 3, start, len, len, &[Change::Data(bat, &nothing)]);
    image.log(4 * SECTOR, &fourth[..SECTOR]);
    assert!(is_written(&image.read()));
    // Without its second entry the third has no beginning, and the older sequence counts.
    image.log(SECTOR, &[0; 4]);
    image.open().unwrap().read(0, &mut [0; 512]).expect_err("the older one's table is nonsense");
}

#[test]
fn what_a_log_says_last_of_a_place_counts() {
    let mut image = Image::new();
    let (bat, table) = (image.bat, image.table.clone());
    let nothing = vec![0xff; SECTOR];
    // More descriptors than fit beside the header, which QEMU 7.2 does not read.
    let mut changes: Vec<_> = (0..200).map(|_| Change::Data(bat, &nothing)).collect();
    changes.push(Change::Zero(bat - 64 * 1024, 128 << 10));
    changes.push(Change::Data(bat, &table));
    changes.push(Change::Zero(bat + 4096, 4096));
    let entry = entry(5, 8 * SECTOR, image.len(), image.len(), &changes);
    image.log(8 * SECTOR, &entry);
    let mut disk = vec![1; SIZE as usize];
    image.open().unwrap().read(0, &mut disk).unwrap();
    assert!(is_written(&disk));
}

#[test]
fn a_log_that_can_not_be_trusted_is_refused_in_words() {
    let mut image = Image::new();
    let (bat, len) = (image.bat, image.len());
    let table = image.table.clone();
    // A file that was cut off.
    let longer = entry(1, 0, len + MIB, len + MIB, &[Change::Data(bat, &table)]);
    image.log(0, &longer);
    image.refused("shorter than when its log was written");
    // The disk's own data.
    let block = u64::from_le_bytes(*table.first_chunk().unwrap()) >> 20 << 20;
    let data = entry(1, 0, len, len, &[Change::Data(bat, &table), Change::Zero(block + MIB - 4096, 4096)]);
    image.log(0, &data);
    image.refused("changes data of the disk");
    // A log that is not in the file, and one too large to read.
    for (words, at, value) in [("its log is not in the file", 72, len - 4096), ("a log of 4095 MiB", 68, 0xfff0_0000)] {
        let mut other = Image { bytes: image.bytes.clone(), ..Image::new() };
        for header in [64 << 10, 128 << 10] {
            other.bytes[header + at..header + at + 4].copy_from_slice(&(value as u32).to_le_bytes());
            seal(&mut other.bytes[header..header + 4096]);
        }
        other.refused(words);
    }
}

#[test]
fn a_block_at_the_end_of_all_addresses_is_an_error() {
    let built = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
    let path = folder.path().join("disk.vhdx");
    qemu("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=2M,size=16M"], &path);
    let mut bytes = fs::read(&path).unwrap();
    let (bat, _) = find_regions(&Words(&bytes[192 << 10..256 << 10])).unwrap();
    bytes[bat.0 as usize..][..8].copy_from_slice(&(u64::MAX << 20 | PRESENT).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let mut disk = ForeignDisk::open(&path, Foreign::Vhdx).unwrap();
    disk.read(3 << 19, &mut [0; 512]).unwrap_err();
}
