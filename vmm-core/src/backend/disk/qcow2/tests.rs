//! qcow2 disks against a model, against QEMU's tools, and against failing power.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::backend::disk::open::{Format, open};
use crate::backend::disk::power::{Dice, Drive};

fn folder() -> TempDir {
    // Beside the build, where the file system is a real one; /tmp may be in memory.
    let built = std::env::current_exe().unwrap();
    tempfile::tempdir_in(built.parent().unwrap()).unwrap()
}

fn options(readonly: bool, direct: bool) -> OpenOptions {
    OpenOptions { readonly, direct }
}

fn open_rw(path: &Path) -> Qcow2Disk {
    Qcow2Disk::open(path, options(false, false)).unwrap()
}

fn run(disk: &mut dyn Disk, request: Request) -> Result<(), DiskError> {
    disk.submit(7, request);
    disk.drain();
    let Completion { token, result } = disk.completed().expect("a completion");
    assert_eq!(token, 7);
    assert!(disk.completed().is_none(), "completed twice");
    result
}

fn write_request(offset: u64, bytes: &[u8], durable: bool) -> Request {
    let mut scratch = Scratch::new(bytes.len());
    scratch.bytes()[..bytes.len()].copy_from_slice(bytes);
    Request::Write { offset, buffers: Buffers::own(&Arc::new(scratch), bytes.len()), durable }
}

fn write(disk: &mut dyn Disk, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    run(disk, write_request(offset, bytes, false))
}

fn read(disk: &mut dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut scratch = Arc::new(Scratch::new(len));
    run(disk, Request::Read { offset, buffers: Buffers::own(&scratch, len) }).unwrap();
    Arc::get_mut(&mut scratch).unwrap().bytes()[..len].to_vec()
}

fn read_all(disk: &mut dyn Disk) -> Vec<u8> {
    let size = disk.geometry().size;
    (0..size).step_by(1 << 20).flat_map(|at| read(disk, at, (size - at).min(1 << 20) as usize)).collect()
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is needed: './dev setup test'");
    let words = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {words}");
    words
}

fn qemu_io(path: &Path, commands: &[String]) {
    let mut command = Command::new("qemu-io");
    command.arg("-f").arg("qcow2").arg(path);
    for words in commands {
        command.args(["-c", words]);
    }
    let output = command.output().expect("qemu-io is needed: './dev setup test'");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn check(path: &Path) -> Result<Findings, OpenError> {
    super::check(path, &mut |_, _| true)
}

/// QEMU finds nothing wrong, not even a leak, and neither do we.
fn assert_clean(path: &Path) {
    qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
    let findings = check(path).unwrap();
    assert!(findings.errors == 0 && findings.leaked == 0 && !findings.marked, "{findings:?}");
}

/// What QEMU reads from an image.
fn as_qemu_reads(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("as-raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed | 1);
    (0..len).map(|_| dice.roll(256) as u8).collect()
}

fn thin(size: u64, cluster: u32, refcount_bits: u32) -> CreateOptions {
    CreateOptions { size, cluster, refcount_bits }
}

#[test]
fn a_new_image_reads_as_zeroes_and_keeps_what_is_written() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    create(&path, CreateOptions::thin(8 << 20)).unwrap();
    assert_clean(&path);
    let mut disk = open(&path, options(false, false)).unwrap();
    assert_eq!(disk.geometry().size, 8 << 20);
    assert!(read_all(&mut disk).iter().all(|byte| *byte == 0));
    write(&mut disk, 0x1_0200, b"once upon a time").unwrap_err();
    let data = pattern(1, 0x3_0600);
    write(&mut disk, 0x1_0200, &data).unwrap();
    assert!(read(&mut disk, 0x1_0200, data.len()) == data);
    drop(disk);
    assert_clean(&path);
    let mut disk = open(&path, options(true, false)).unwrap();
    assert!(read(&mut disk, 0x1_0200, data.len()) == data);
    assert!(matches!(write(&mut disk, 0, &data), Err(DiskError::ReadOnly)));
    drop(disk);
    assert!(as_qemu_reads(&path)[0x1_0200..][..data.len()] == data);
}

#[test]
fn an_image_in_use_is_not_opened_writable_by_another_nor_is_what_it_stands_on() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
    create(&base, CreateOptions::thin(1 << 20)).unwrap();
    create_overlay(&top, Path::new("base.qcow2"), Format::Qcow2, CreateOptions::overlay(1 << 20)).unwrap();
    let disk = open_rw(&top);
    for readonly in [false, true] {
        assert!(matches!(Qcow2Disk::open(&top, options(readonly, false)), Err(OpenError::InUse { .. })));
    }
    assert!(matches!(Qcow2Disk::open(&base, options(false, false)), Err(OpenError::InUse { .. })));
    drop(Qcow2Disk::open(&base, options(true, false)).unwrap());
    drop(disk);
    let base_disk = open_rw(&base);
    let error = Qcow2Disk::open(&top, options(false, false)).map(drop).unwrap_err();
    assert!(
        matches!(&error, OpenError::Backing { source, .. } if matches!(**source, OpenError::InUse { .. })),
        "{error}"
    );
    drop(base_disk);
    open_rw(&top);
}

#[test]
fn a_backing_file_is_only_followed_inside_the_images_own_or_its_machines_folder() {
    let folder = folder();
    let (inner, secret) = (folder.path().join("vm/disks"), folder.path().join("secret.raw"));
    fs::create_dir_all(&inner).unwrap();
    fs::write(&secret, vec![1; 1 << 20]).unwrap();
    let top = inner.join("top.qcow2");
    let refused = |backing: &str| {
        let _ = fs::remove_file(&top);
        create_overlay(&top, Path::new(backing), Format::Raw, CreateOptions::overlay(1 << 20)).unwrap();
        Qcow2Disk::open(&top, options(true, false)).map(drop).unwrap_err()
    };
    for backing in [secret.to_str().unwrap(), "../../secret.raw", "../other.raw"] {
        fs::write(folder.path().join("vm/other.raw"), vec![2; 1 << 20]).unwrap();
        let error = refused(backing);
        assert!(matches!(error, OpenError::Outside { .. }), "{backing}: {error}");
        assert!(error.to_string().contains("outside its own folder"), "{error}");
    }
    std::os::unix::fs::symlink(&secret, inner.join("link.raw")).unwrap();
    assert!(matches!(refused("link.raw"), OpenError::Outside { .. }));
    assert!(matches!(refused("missing.raw"), OpenError::Backing { .. }));
    // A machine's folder is one in which its disks may refer to each other.
    fs::write(folder.path().join("vm/machine.toml"), "").unwrap();
    fs::remove_file(&top).unwrap();
    create_overlay(&top, Path::new("../other.raw"), Format::Raw, CreateOptions::overlay(1 << 20)).unwrap();
    assert_eq!(read(&mut open_rw(&top), 0, 512), [2; 512]);
    // Words that other programs take for more than a file.
    for name in ["json:{\"driver\":\"file\"}", "nbd://localhost/disk", "ssh:host"] {
        let mut bytes = fs::read(&top).unwrap();
        let at = u64::from_be_bytes(*bytes[8..].first_chunk().unwrap()) as usize;
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        let path = inner.join("words.qcow2");
        fs::write(&path, bytes).unwrap();
        assert!(matches!(Qcow2Disk::open(&path, options(true, false)), Err(OpenError::Outside { .. })), "{name}");
    }
}

#[test]
fn an_image_that_stands_on_itself_is_refused() {
    let folder = folder();
    let (a, b) = (folder.path().join("a.qcow2"), folder.path().join("b.qcow2"));
    create(&a, CreateOptions::thin(1 << 20)).unwrap();
    create_overlay(&b, Path::new("a.qcow2"), Format::Qcow2, CreateOptions::overlay(1 << 20)).unwrap();
    rebase_header(&a, Some((Path::new("b.qcow2"), Format::Qcow2))).unwrap();
    assert!(matches!(Qcow2Disk::open(&a, options(true, false)), Err(OpenError::TooDeep { .. })));
}

#[derive(Debug, Clone)]
enum Op {
    Read { sector: u64, count: u64 },
    Write { sector: u64, count: u64, seed: u64, durable: bool },
    Zero { sector: u64, count: u64, unmap: bool },
    Discard { sector: u64, count: u64 },
    Flush,
    Reopen,
}

const SECTORS: u64 = 6 * 1024 * 2 + 7;

fn op() -> impl Strategy<Value = Op> {
    let span = || {
        prop_oneof![
            (0..SECTORS, 1..24u64),
            (0..SECTORS / 8, 1..32u64).prop_map(|(s, c)| (s * 8, c * 8)),
            (0..SECTORS / 128, 1..24u64).prop_map(|(s, c)| (s * 128, c * 128)),
            (SECTORS - 200..SECTORS, 1..200u64)
        ]
        .prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)))
    };
    prop_oneof![
        3 => span().prop_map(|(sector, count)| Op::Read { sector, count }),
        5 => (span(), any::<u64>(), prop::bool::weighted(0.1))
            .prop_map(|((sector, count), seed, durable)| Op::Write { sector, count, seed, durable }),
        1 => (span(), any::<bool>()).prop_map(|((sector, count), unmap)| Op::Zero { sector, count, unmap }),
        1 => span().prop_map(|(sector, count)| Op::Discard { sector, count }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_does_what_its_model_does_and_qemu_reads_the_same(
        ops in prop::collection::vec(op(), 1..60),
        cluster in prop::sample::select(vec![512u32, 4096, 8192, 65536, 2 << 20]),
        refcount_bits in prop::sample::select(vec![1u32, 2, 8, 16, 64]),
        layers in 0..3usize,
        direct: bool,
        thread: bool,
    ) {
        let folder = folder();
        let size = SECTORS * 512;
        let mut model = vec![0u8; size as usize];
        let mut path = folder.path().join("0.raw");
        let mut format = Format::Raw;
        if layers > 0 {
            // A raw image below, shorter than the disk and of an odd length.
            let below = pattern(99, 1 << 20 | 300);
            model[..below.len()].copy_from_slice(&below);
            fs::write(&path, below).unwrap();
        }
        for layer in 1..=layers {
            let name = path.file_name().unwrap().to_owned();
            let next = folder.path().join(format!("{layer}.qcow2"));
            let cluster = if layer == layers { cluster } else { 16384 };
            create_overlay(&next, Path::new(&name), format, thin(size, cluster, refcount_bits)).unwrap();
            (path, format) = (next, Format::Qcow2);
            let data = pattern(layer as u64, 70_144);
            let at = layer * 3 * 512 + 0x8_0000;
            write(&mut open_rw(&path), at as u64, &data).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        if layers == 0 {
            path = folder.path().join("0.qcow2");
            create(&path, thin(size, cluster, refcount_bits)).unwrap();
        }
        let way = || if thread { Way::Thread } else { Way::Best };
        let reopen = || Qcow2Disk::open_with(&path, options(false, direct), &Roots::of(&path), way(), false).unwrap();
        let mut disk = Some(reopen());
        for op in ops {
            let d = disk.as_mut().unwrap();
            match op {
                Op::Read { sector, count } => {
                    let at = sector as usize * 512;
                    prop_assert!(read(d, sector * 512, count as usize * 512) == model[at..at + count as usize * 512]);
                }
                Op::Write { sector, count, seed, durable } => {
                    let bytes = pattern(seed, count as usize * 512);
                    run(d, write_request(sector * 512, &bytes, durable)).unwrap();
                    model[sector as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
                }
                Op::Zero { sector, count, unmap } => {
                    let (offset, len) = (sector * 512, count * 512);
                    run(d, Request::WriteZeroes { offset, len, unmap, durable: false }).unwrap();
                    model[offset as usize..][..len as usize].fill(0);
                }
                Op::Discard { sector, count } => {
                    let (offset, len) = (sector * 512, count * 512);
                    run(d, Request::Discard { offset, len }).unwrap();
                    // What is there now is not said, but it is zeroes or what was there.
                    for sector in sector..sector + count {
                        let now = read(d, sector * 512, 512);
                        let was = &mut model[sector as usize * 512..][..512];
                        prop_assert!(now == was || now == [0; 512]);
                        was.copy_from_slice(&now);
                    }
                }
                Op::Flush => run(d, Request::Flush).unwrap(),
                Op::Reopen => {
                    drop(disk.take());
                    disk = Some(reopen());
                }
            }
        }
        prop_assert!(read_all(disk.as_mut().unwrap()) == model);
        drop(disk);
        assert_clean(&path);
        prop_assert!(as_qemu_reads(&path) == model);
    }
}

/// What a sector may hold, by numbers that were written there.
type Possible = BTreeSet<u64>;

struct Powered {
    drive: Drive,
    path: PathBuf,
    before: Vec<u8>,
    /// By sector: what was possible, and from which instant on.
    history: Vec<Vec<(usize, Possible)>>,
    /// Flushes: when each was over, and how long each sector's history was when it was asked for.
    flushes: Vec<(usize, Vec<usize>)>,
    on_their_way: Vec<(u64, u64)>,
}

fn sector_of(id: u64) -> Vec<u8> {
    id.to_be_bytes().repeat(64)
}

const POWERED: u64 = 96 * 8;

impl Powered {
    fn open(&self) -> Qcow2Disk {
        let roots = Roots::of(&self.path);
        Qcow2Disk::open_with(&self.path, options(false, false), &roots, Way::Sim(self.drive.clone()), false).unwrap()
    }

    fn note(&mut self, sector: u64, add: impl Fn(&Possible) -> Possible) {
        let now = self.drive.instants();
        let history = &mut self.history[sector as usize];
        let next = add(&history.last().unwrap().1);
        history.push((now, next));
    }

    /// Submits something at random; it returns what it was, for whoever has to do it again.
    fn act(&mut self, disk: &mut Qcow2Disk, dice: &mut Dice, next_id: &mut u64, token: u64) -> (u64, u64, u64) {
        let kind = dice.roll(8);
        let unit = [1, 8, 8, 8, 128][dice.roll(5) as usize];
        let sector = dice.roll(POWERED / unit) * unit;
        let count = (unit * (1 + dice.roll(3))).min(POWERED - sector);
        // Which of two that are on their way together comes last is not said.
        if self.on_their_way.iter().any(|(s, c)| *s < sector + count && sector < s + c) {
            disk.drain();
            self.on_their_way.clear();
        }
        self.on_their_way.push((sector, count));
        *next_id += 1;
        self.redo(disk, (kind, sector, count), *next_id, token);
        (kind, sector, count)
    }

    fn redo(&mut self, disk: &mut Qcow2Disk, (kind, sector, count): (u64, u64, u64), id: u64, token: u64) {
        let (offset, len) = (sector * 512, count * 512);
        match kind {
            0 => {
                (sector..sector + count).for_each(|s| self.note(s, |p| p.iter().copied().chain([0]).collect()));
                disk.submit(token, Request::Discard { offset, len });
            }
            1 => {
                (sector..sector + count).for_each(|s| self.note(s, |_| Possible::from([0])));
                disk.submit(token, Request::WriteZeroes { offset, len, unmap: id.is_multiple_of(2), durable: false });
            }
            _ => {
                (sector..sector + count).for_each(|s| self.note(s, |_| Possible::from([id])));
                let bytes: Vec<u8> = (0..count).flat_map(|_| sector_of(id)).collect();
                disk.submit(token, write_request(offset, &bytes, false));
            }
        }
    }

    /// Looks at the image as it is when power fails at this instant.
    fn look(&self, instant: usize, dice: &mut Dice, with_qemu: bool) {
        let inode = fs::metadata(&self.path).unwrap().ino();
        let bytes = self.drive.after_power_loss(inode, &self.before, instant, dice);
        let lost = self.path.with_file_name("lost.qcow2");
        fs::write(&lost, bytes).unwrap();
        // Before it is repaired nothing is worse than a leak, and every leak is announced.
        let findings = check(&lost).unwrap();
        assert!(findings.errors == 0, "at {instant}: {findings:?}");
        assert!(findings.leaked == 0 || findings.marked, "at {instant}: {findings:?}");
        let mut disk = open_rw(&lost);
        let now = read_all(&mut disk);
        drop(disk);
        let findings = check(&lost).unwrap();
        assert!(findings.errors == 0 && findings.leaked == 0 && !findings.marked, "at {instant}: {findings:?}");
        if with_qemu {
            assert_clean(&lost);
        }
        let flushed = self.flushes.iter().rev().find(|(over, _)| *over <= instant);
        for (sector, history) in self.history.iter().enumerate() {
            let from = flushed.map_or(0, |(_, lengths)| lengths[sector] - 1);
            let mut possible = history[from..].iter().filter(|(at, _)| *at <= instant).flat_map(|(_, p)| p);
            let bytes = &now[sector * 512..][..512];
            let id = u64::from_be_bytes(*bytes.first_chunk().unwrap());
            assert!(bytes == sector_of(id), "sector {sector} is torn at {instant}");
            assert!(possible.any(|p| *p == id), "sector {sector} holds {id} at {instant}");
        }
    }
}

fn powered(folder: &Path, seed: u64, cluster: u32, refcount_bits: u32, overlay: bool) -> Powered {
    let path = folder.join("disk.qcow2");
    let _ = fs::remove_file(&path);
    let size = POWERED * 512;
    let first = if overlay {
        let base: Vec<u8> = (0..POWERED).flat_map(|s| sector_of(1_000_000 + s)).collect();
        fs::write(folder.join("base.raw"), base).unwrap();
        create_overlay(&path, Path::new("base.raw"), Format::Raw, thin(size, cluster, refcount_bits)).unwrap();
        (0..POWERED).map(|s| vec![(0, Possible::from([1_000_000 + s]))]).collect()
    } else {
        create(&path, thin(size, cluster, refcount_bits)).unwrap();
        (0..POWERED).map(|_| vec![(0, Possible::from([0]))]).collect()
    };
    let before = fs::read(&path).unwrap();
    Powered { drive: Drive::new(seed), path, before, history: first, flushes: Vec::new(), on_their_way: Vec::new() }
}

const KINDS: [(u32, u32, bool); 6] =
    [(512, 16, false), (4096, 1, true), (4096, 16, false), (65536, 16, false), (65536, 16, true), (1024, 64, true)];

#[test]
fn power_may_fail_at_any_instant_and_what_was_flushed_is_there() {
    let folder = folder();
    for seed in 1..=6u64 {
        let (cluster, refcount_bits, overlay) = KINDS[seed as usize % KINDS.len()];
        let mut powered = powered(folder.path(), seed * 7919, cluster, refcount_bits, overlay);
        let mut dice = Dice((seed * 104_729) | 1);
        let mut disk = powered.open();
        let mut id = 0;
        for _ in 0..6 {
            for token in 0..1 + dice.roll(5) {
                powered.act(&mut disk, &mut dice, &mut id, token);
                if dice.roll(2) == 0 {
                    disk.drain();
                }
            }
            disk.drain();
            while let Some(completion) = disk.completed() {
                completion.result.unwrap();
            }
            let lengths = powered.history.iter().map(Vec::len).collect();
            disk.submit(100, Request::Flush);
            for token in 0..dice.roll(4) {
                powered.act(&mut disk, &mut dice, &mut id, token);
            }
            // The flush may be over before the others are.
            disk.drain();
            powered.flushes.push((powered.drive.instants(), lengths));
        }
        drop(disk);
        for instant in 0..=powered.drive.instants() {
            let with_qemu = dice.roll(100) == 0;
            powered.look(instant, &mut dice, with_qemu);
        }
    }
}

#[test]
fn a_full_host_fails_requests_that_can_be_done_again_and_spoils_nothing() {
    let folder = folder();
    for seed in 1..=12u64 {
        let (cluster, refcount_bits, overlay) = KINDS[seed as usize % KINDS.len()];
        let mut powered = powered(folder.path(), seed * 6007, cluster, refcount_bits, overlay);
        let mut dice = Dice((seed * 7177) | 1);
        let mut disk = powered.open();
        let mut id = 0;
        for round in 0..12 {
            powered.drive.fail(Some((dice.roll(9) as usize, libc::ENOSPC)));
            let mut acts = Vec::new();
            for token in 0..1 + dice.roll(5) {
                acts.push((powered.act(&mut disk, &mut dice, &mut id, token), id));
            }
            disk.submit(100, Request::Flush);
            disk.drain();
            let mut failed = Vec::new();
            while let Some(Completion { token, result }) = disk.completed() {
                match result {
                    Ok(()) => {}
                    Err(DiskError::Full) => failed.push(token),
                    Err(error) => panic!("{error}"),
                }
            }
            powered.drive.fail(None);
            if round % 3 == 2 {
                // The machine is resumed: what failed is asked for once more, in the order of the guest.
                failed.sort_unstable();
            }
            for (token, (act, id)) in acts.iter().enumerate() {
                if failed.contains(&(token as u64)) {
                    powered.redo(&mut disk, *act, *id, token as u64);
                    disk.drain();
                }
            }
            while let Some(completion) = disk.completed() {
                completion.result.unwrap();
            }
        }
        disk.settle().unwrap();
        let instant = powered.drive.instants();
        drop(disk);
        assert_clean(&powered.path);
        powered.flushes.push((instant, powered.history.iter().map(Vec::len).collect()));
        powered.look(instant, &mut dice, true);
    }
}

#[test]
fn what_is_discarded_leaves_the_host_file() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    create(&path, CreateOptions::thin(64 << 20)).unwrap();
    let mut disk = open_rw(&path);
    let data = pattern(3, 16 << 20);
    write(&mut disk, 1 << 20, &data).unwrap();
    disk.settle().unwrap();
    let full = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(full > 16 << 20);
    run(&mut disk, Request::Discard { offset: 1 << 20, len: 15 << 20 }).unwrap();
    disk.settle().unwrap();
    let left = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(left < full - (14 << 20), "{left} of {full}");
    // What is free is used again.
    write(&mut disk, 32 << 20, &data[..15 << 20]).unwrap();
    drop(disk);
    let length = fs::metadata(&path).unwrap().len();
    assert!(length < 18 << 20, "{length}");
    assert_clean(&path);
}

fn merged(base: &Path, top: &Path, format: Format) {
    commit(top, base, format, &mut |_, _| {}, &AtomicBool::new(false)).unwrap();
}

#[test]
fn a_layer_is_merged_into_the_one_below_while_a_machine_reads_through_both() {
    let folder = folder();
    let [base, middle, top] = ["base", "middle", "top"].map(|n| folder.path().join(n).with_extension("qcow2"));
    let size = 16 << 20;
    create(&base, CreateOptions::thin(size)).unwrap();
    write(&mut open_rw(&base), 0, &pattern(1, 5 << 20)).unwrap();
    create_overlay(&middle, Path::new("base.qcow2"), Format::Qcow2, CreateOptions::overlay(size)).unwrap();
    let mut disk = open_rw(&middle);
    for at in 0..40u64 {
        write(&mut disk, at * 0x3_1000, &pattern(at + 2, 0x1400)).unwrap();
    }
    run(&mut disk, Request::WriteZeroes { offset: 0x20_0000, len: 0x5_0000, unmap: true, durable: false }).unwrap();
    drop(disk);
    create_overlay(&top, Path::new("middle.qcow2"), Format::Qcow2, CreateOptions::overlay(size)).unwrap();
    let mut machine = open_rw(&top);
    write(&mut machine, 0x10_0000, &pattern(77, 0x2000)).unwrap();
    let all = read_all(&mut machine);

    // Cancelled in the middle, it is done again.
    let cancel = AtomicBool::new(false);
    let mut stop = |done, _| cancel.store(done > 0, std::sync::atomic::Ordering::Relaxed);
    let cancelled = commit(&middle, &base, Format::Qcow2, &mut stop, &cancel);
    assert!(matches!(cancelled, Err(Merge::Cancelled)) || cancelled.is_ok());
    assert!(read_all(&mut machine) == all);
    merged(&base, &middle, Format::Qcow2);
    merged(&base, &middle, Format::Qcow2);
    assert!(read_all(&mut machine) == all);
    drop(machine);
    rebase_header(&top, Some((Path::new("base.qcow2"), Format::Qcow2))).unwrap();
    fs::remove_file(&middle).unwrap();
    let mut machine = open_rw(&top);
    assert_eq!(machine.chain().len(), 2);
    assert!(read_all(&mut machine) == all);
    drop(machine);
    [&base, &top].into_iter().for_each(|path| assert_clean(path));
    assert!(as_qemu_reads(&top) == all);
}

#[test]
fn a_layer_is_merged_into_a_raw_image_which_grows_if_it_must() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
    fs::write(&base, pattern(5, 1 << 20)).unwrap();
    create_overlay(&top, Path::new("base.raw"), Format::Raw, CreateOptions::overlay(3 << 20)).unwrap();
    let mut disk = open_rw(&top);
    write(&mut disk, 0x8_0000, &pattern(6, 0x3000)).unwrap();
    write(&mut disk, 0x20_0000, &pattern(7, 0x3000)).unwrap();
    run(&mut disk, Request::WriteZeroes { offset: 0x1000, len: 0x1_0000, unmap: true, durable: false }).unwrap();
    let all = read_all(&mut disk);
    drop(disk);
    merged(&base, &top, Format::Raw);
    assert!(fs::read(&base).unwrap() == all);
}

#[test]
fn a_new_backing_file_is_named_whole_or_not_at_all() {
    let folder = folder();
    let top = folder.path().join("top.qcow2");
    let names: Vec<String> = [8, 300, 200, 400, 5, 240].iter().map(|len| "x".repeat(*len)).collect();
    for name in &names {
        // Longer than a file's name may be: a folder and a file.
        let (dir, file) = name.split_at(name.len() / 2);
        fs::create_dir_all(folder.path().join(dir)).unwrap();
        fs::write(folder.path().join(dir).join(file), pattern(1, 4096)).unwrap();
    }
    let path_of = |name: &str| {
        let (dir, file) = name.split_at(name.len() / 2);
        format!("{dir}/{file}")
    };
    create_overlay(&top, Path::new(&path_of(&names[0])), Format::Raw, CreateOptions::overlay(4096)).unwrap();
    write(&mut open_rw(&top), 512, &pattern(9, 512)).unwrap();
    let all = read_all(&mut open_rw(&top));
    for name in &names[1..] {
        let before = fs::read(&top).unwrap();
        rebase_header(&top, Some((Path::new(&path_of(name)), Format::Raw))).unwrap();
        let after = fs::read(&top).unwrap();
        // All but the first sector may be there or not while that one is the old one.
        let mut between = after.clone();
        between[..512].copy_from_slice(&before[..512]);
        let lost = folder.path().join("lost.qcow2");
        for bytes in [&between, &after] {
            fs::write(&lost, bytes).unwrap();
            assert!(read_all(&mut Qcow2Disk::open(&lost, options(true, false)).unwrap()) == all);
        }
        assert!(qemu_img(&["info", top.to_str().unwrap()]).contains(&path_of(name)));
        assert_clean(&top);
    }
    rebase_header(&top, None).unwrap();
    assert_eq!(open_rw(&top).chain().len(), 1);
}

#[test]
fn a_disk_grows_past_what_its_tables_have_room_for() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    create(&path, thin(1 << 20, 512, 16)).unwrap();
    let mut disk = open_rw(&path);
    let data = pattern(4, 1 << 19);
    write(&mut disk, 0, &data).unwrap();
    assert!(matches!(disk.grow(512), Err(DiskError::OutOfRange)));
    for size in [1 << 20, 2 << 20, 40 << 20] {
        disk.grow(size).unwrap();
        assert_eq!(disk.geometry().size, size);
        assert!(read(&mut disk, 0, data.len()) == data);
        let end = data[..4096].to_vec();
        write(&mut disk, size - 4096, &end).unwrap();
        assert!(read(&mut disk, size - 4096, 4096) == end);
    }
    let all = read_all(&mut disk);
    drop(disk);
    assert_clean(&path);
    assert!(as_qemu_reads(&path) == all);
}

#[test]
fn what_other_programs_left_dirty_is_repaired() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-f", "qcow2", "-o", "lazy_refcounts=on", name, "64M"]);
    // QEMU that is killed has written no refcounts.
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "qcow2", name, "-c", "write -P 7 1M 8M", "-c", "flush", "-c", "sigraise 9"]);
    qemu.output().unwrap();
    let findings = check(&path).unwrap();
    assert!(findings.marked && findings.errors > 0, "{findings:?}");
    let mut disk = open_rw(&path);
    assert!(read(&mut disk, 1 << 20, 1 << 20) == vec![7; 1 << 20]);
    write(&mut disk, 20 << 20, &pattern(1, 1 << 20)).unwrap();
    drop(disk);
    assert_clean(&path);
}

/// Every kind of image that QEMU makes is read right or refused in words.
#[test]
fn images_by_qemu_are_read_and_written_right_or_refused_in_words() {
    let folder = folder();
    let raw = folder.path().join("data.raw");
    let mut data = pattern(11, 3 << 20);
    data.extend(vec![0; 1 << 20]);
    data.extend(vec![0x55; 2 << 20]);
    fs::write(&raw, &data).unwrap();
    let raw = raw.to_str().unwrap();
    let cases: [(&[&str], bool); 17] = [
        (&["-o", "compat=0.10"], true),
        (&["-c"], true),
        (&["-c", "-o", "compat=0.10,cluster_size=4096"], true),
        (&["-c", "-o", "cluster_size=2M"], true),
        (&["-c", "-o", "cluster_size=512"], true),
        (&["-o", "cluster_size=512"], true),
        (&["-o", "cluster_size=1024"], true),
        (&["-o", "cluster_size=32768,refcount_bits=1"], true),
        (&["-o", "cluster_size=2M,refcount_bits=64"], true),
        (&["-o", "refcount_bits=2"], true),
        (&["-o", "preallocation=metadata"], true),
        (&["-o", "preallocation=falloc,cluster_size=4096"], true),
        (&["-o", "lazy_refcounts=on"], true),
        (&["-c", "-o", "compression_type=zstd"], true),
        (&["-c", "-o", "compression_type=zstd,cluster_size=2M"], true),
        (&["-c", "-o", "compression_type=zstd,cluster_size=512"], true),
        (&["-o", "data_file=DATA"], false),
    ];
    for (case, (arguments, works)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("{case}.qcow2"));
        let arguments: Vec<String> =
            arguments.iter().map(|a| a.replace("DATA", &format!("{}.data", path.display()))).collect();
        let mut all = vec!["convert", "-f", "raw", "-O", "qcow2"];
        all.extend(arguments.iter().map(String::as_str));
        all.extend([raw, path.to_str().unwrap()]);
        qemu_img(&all);
        let before = fs::read(&path).unwrap();
        if !works {
            for readonly in [true, false] {
                let error = Qcow2Disk::open(&path, options(readonly, false)).map(drop).unwrap_err();
                let OpenError::Format { source, .. } = error else { panic!("{error}") };
                assert!(source.to_string().contains("qemu-img convert"), "{source}");
            }
            assert!(fs::read(&path).unwrap() == before, "{arguments:?} was changed");
            continue;
        }
        assert!(read_all(&mut Qcow2Disk::open(&path, options(true, false)).unwrap()) == data, "{arguments:?}");
        assert!(fs::read(&path).unwrap() == before, "{arguments:?} was changed by reading");
        let mut disk = open_rw(&path);
        let mut model = data.clone();
        for (at, len) in [(0x200, 0x600), (0x1_0000, 0x2_0000), (0x2f_fe00, 0x1_0400), (0x40_0000, 512)] {
            let bytes = pattern(at as u64, len);
            write(&mut disk, at as u64, &bytes).unwrap();
            model[at..at + len].copy_from_slice(&bytes);
        }
        run(&mut disk, Request::WriteZeroes { offset: 0x8_0000, len: 0x8_0000, unmap: true, durable: true }).unwrap();
        model[0x8_0000..0x10_0000].fill(0);
        assert!(read_all(&mut disk) == model, "{arguments:?}");
        drop(disk);
        assert_clean(&path);
        assert!(as_qemu_reads(&path) == model, "{arguments:?}");
    }
}

#[test]
fn snapshots_and_bitmaps_of_others_are_read_but_not_written_over() {
    let folder = folder();
    let (snapshot, bitmap) = (folder.path().join("snapshot.qcow2"), folder.path().join("bitmap.qcow2"));
    for path in [&snapshot, &bitmap] {
        qemu_img(&["create", "-f", "qcow2", path.to_str().unwrap(), "8M"]);
        qemu_io(path, &["write -P 5 1M 1M".into()]);
    }
    qemu_img(&["snapshot", "-c", "first", snapshot.to_str().unwrap()]);
    qemu_img(&["bitmap", "--add", bitmap.to_str().unwrap(), "dirty"]);
    let subclusters = folder.path().join("subclusters.qcow2");
    qemu_img(&["create", "-f", "qcow2", "-o", "extended_l2=on", subclusters.to_str().unwrap(), "8M"]);
    qemu_io(&subclusters, &["write -P 5 1M 1M".into()]);
    for (path, what) in [(&snapshot, "internal snapshots"), (&bitmap, "dirty bitmaps"), (&subclusters, "subclusters")] {
        let before = fs::read(path).unwrap();
        let error = Qcow2Disk::open(path, options(false, false)).map(drop).unwrap_err();
        let OpenError::Format { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(what), "{source}");
        let mut disk = Qcow2Disk::open(path, options(true, false)).unwrap();
        assert!(read(&mut disk, 1 << 20, 1 << 20) == vec![5; 1 << 20]);
        drop(disk);
        assert!(fs::read(path).unwrap() == before);
    }
    assert_eq!(check(&snapshot).unwrap().errors, 0);
}

#[test]
fn subclusters_are_read_wherever_each_is() {
    for cluster in ["16k", "64k", "2M"] {
        let folder = folder();
        let [base, top, packed] = ["base", "top", "packed"].map(|name| folder.path().join(format!("{name}.qcow2")));
        let layout = format!("extended_l2=on,cluster_size={cluster}");
        qemu_img(&["create", "-f", "qcow2", base.to_str().unwrap(), "7M"]);
        qemu_io(&base, &["write -P 9 0 7M".into()]);
        let below = ["-F", "qcow2", "-b", "base.qcow2", "-o", &layout];
        qemu_img(&[&["create", "-f", "qcow2"], &below[..], &[top.to_str().unwrap(), "8M"]].concat());
        let mut dice = Dice(cluster.len() as u64 + 77);
        let mut words = Vec::new();
        for round in 0..200u64 {
            let (at, len) = (dice.roll(16384 - 40) * 512, (1 + dice.roll(40)) * 512);
            words.push(match round % 4 {
                0 => format!("write -z {at} {len}"),
                1 => format!("write -z -u {at} {len}"),
                _ => format!("write -P {} {at} {len}", round % 250 + 1),
            });
        }
        qemu_io(&top, &words);
        qemu_img(&["convert", "-c", "-O", "qcow2", "-o", &layout, top.to_str().unwrap(), packed.to_str().unwrap()]);
        for path in [&top, &packed] {
            let before = fs::read(path).unwrap();
            let found = read_all(&mut Qcow2Disk::open(path, options(true, false)).unwrap());
            assert!(found == as_qemu_reads(path), "{} with {cluster}", path.display());
            assert_eq!(check(path).unwrap().errors, 0);
            assert!(fs::read(path).unwrap() == before);
        }
    }
}

#[test]
fn a_long_chain_is_read_through() {
    let folder = folder();
    let name = |n: usize| format!("{n}.qcow2");
    create(&folder.path().join(name(0)), CreateOptions::thin(1 << 20)).unwrap();
    for n in 1..=24usize {
        let path = folder.path().join(name(n));
        let below = name(n - 1);
        let mut arguments = vec!["create", "-f", "qcow2", "-F", "qcow2", "-b", &below];
        let text = path.to_str().unwrap().to_owned();
        arguments.push(&text);
        qemu_img(&arguments);
        write(&mut open_rw(&path), n as u64 * 4096, &pattern(n as u64, 4096)).unwrap();
    }
    let mut disk = open_rw(&folder.path().join(name(24)));
    assert_eq!(disk.chain().len(), 25);
    for n in 1..=24u64 {
        assert!(read(&mut disk, n * 4096, 4096) == pattern(n, 4096));
    }
}
