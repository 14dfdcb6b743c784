//! Raw images through both engines, against a model, byte by byte.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::image::Image;
use super::*;
use crate::base::{GuestAddress, GuestMemory};

const RAM: u64 = 4 << 20;

fn image(bytes: &[u8]) -> NamedTempFile {
    // Beside the build, where the file system is a real one; /tmp may be in memory.
    let built = std::env::current_exe().unwrap();
    let file = NamedTempFile::new_in(built.parent().unwrap()).unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    file
}

fn options(readonly: bool, direct: bool) -> OpenOptions {
    OpenOptions { readonly, direct }
}

/// Every way of running requests.
fn all_ways(path: &Path, readonly: bool, test: impl Fn(RawDisk)) {
    for direct in [false, true] {
        test(RawDisk::open(path, options(readonly, direct)).unwrap());
        test(RawDisk::open_on_a_thread(path, options(readonly, direct)).unwrap());
    }
}

fn run(disk: &mut dyn Disk, request: Request) -> Result<(), DiskError> {
    disk.submit(7, request);
    disk.drain();
    let Completion { token, result } = disk.completed().expect("a completion");
    assert_eq!(token, 7);
    assert!(disk.completed().is_none(), "completed twice");
    result
}

fn buffers(memory: &GuestMemory, runs: &[(u64, usize)]) -> Buffers {
    let runs: Vec<_> = runs.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
    Buffers::from_runs(memory, &runs).unwrap()
}

fn fill(memory: &GuestMemory, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; RAM as usize];
    let mut state = seed | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    memory.write(GuestAddress(0), &bytes).unwrap();
    bytes
}

#[test]
fn what_was_written_is_read_back_whatever_the_buffers_alignment() {
    let file = image(&vec![0; 1 << 20]);
    all_ways(file.path(), false, |mut disk| {
        let memory = GuestMemory::new(RAM).unwrap();
        let bytes = fill(&memory, 1);
        let size = 300 * 512;
        for from in [&[(0x1000, size)][..], &[(0x1003, size)], &[(0x1001, 511), (0x3000, size - 512), (0x2000, 1)]] {
            let mut written: Vec<u8> = Vec::new();
            for &(at, len) in from {
                written.extend(&bytes[at as usize..at as usize + len]);
            }
            run(&mut disk, Request::Write { offset: 512, buffers: buffers(&memory, from), durable: true }).unwrap();
            let to = &[(0x20_0001, 1000), (0x21_0000, size - 1000)];
            run(&mut disk, Request::Read { offset: 512, buffers: buffers(&memory, to) }).unwrap();
            let mut read = vec![0; size];
            memory.read(GuestAddress(0x20_0001), &mut read[..1000]).unwrap();
            memory.read(GuestAddress(0x21_0000), &mut read[1000..]).unwrap();
            assert!(read == written, "{from:?}");
        }
    });
}

#[test]
fn requests_of_more_runs_than_one_call_takes_are_continued() {
    let file = image(&vec![0; 2 << 20]);
    all_ways(file.path(), false, |mut disk| {
        let memory = GuestMemory::new(RAM).unwrap();
        let bytes = fill(&memory, 2);
        let runs: Vec<_> = (0..2500u64).map(|i| (i * 512, 512)).collect();
        run(&mut disk, Request::Write { offset: 0, buffers: buffers(&memory, &runs), durable: false }).unwrap();
        run(&mut disk, Request::Flush).unwrap();
        let mut seen = vec![0; 2500 * 512];
        File::open(file.path()).unwrap().read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == bytes[..2500 * 512]);
    });
}

#[test]
fn a_file_that_ends_inside_a_sector_reads_as_zeroes_there_and_grows_when_written() {
    let file = image(&[0xee; 1000]);
    all_ways(file.path(), false, |mut disk| {
        assert_eq!(disk.geometry().size, 1024);
        let memory = GuestMemory::new(RAM).unwrap();
        fill(&memory, 3);
        run(&mut disk, Request::Read { offset: 0, buffers: buffers(&memory, &[(0x1000, 1024)]) }).unwrap();
        let mut seen = [0; 1024];
        memory.read(GuestAddress(0x1000), &mut seen).unwrap();
        assert!(seen[..1000] == [0xee; 1000] && seen[1000..] == [0; 24]);
    });
    let mut disk = RawDisk::open(file.path(), options(false, true)).unwrap();
    let memory = GuestMemory::new(RAM).unwrap();
    let write = Request::Write { offset: 512, buffers: buffers(&memory, &[(0, 512)]), durable: true };
    run(&mut disk, write).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), 1024);
}

#[test]
fn a_file_that_was_cut_short_fails_reads_and_harms_nothing_else() {
    let file = image(&[1; 8192]);
    all_ways(file.path(), false, |mut disk| {
        let memory = GuestMemory::new(RAM).unwrap();
        let read = |offset, len| Request::Read { offset, buffers: buffers(&memory, &[(0, len)]) };
        run(&mut disk, read(4096, 4096)).unwrap();
        file.as_file().set_len(4096).unwrap();
        assert!(matches!(run(&mut disk, read(4096, 512)), Err(DiskError::Shrunk)));
        assert!(matches!(run(&mut disk, read(2048, 4096)), Err(DiskError::Shrunk)));
        run(&mut disk, read(0, 4096)).unwrap();
        file.as_file().set_len(8192).unwrap();
    });
}

#[test]
fn requests_outside_the_disk_or_on_a_read_only_one_are_refused() {
    let file = image(&[1; 8192]);
    let memory = GuestMemory::new(RAM).unwrap();
    let mut disk = RawDisk::open(file.path(), options(false, false)).unwrap();
    for (offset, len) in [(8192, 512), (7680, 1024), (u64::MAX - 511, 512), (1, 512), (0, 100)] {
        let buffers = buffers(&memory, &[(0, len as usize)]);
        assert!(matches!(run(&mut disk, Request::Read { offset, buffers }), Err(DiskError::OutOfRange)));
        let zero = Request::WriteZeroes { offset, len, unmap: true, durable: false };
        assert!(matches!(run(&mut disk, zero), Err(DiskError::OutOfRange)));
        assert!(matches!(run(&mut disk, Request::Discard { offset, len }), Err(DiskError::OutOfRange)));
    }
    drop(disk);
    all_ways(file.path(), true, |mut disk| {
        let write = Request::Write { offset: 0, buffers: buffers(&memory, &[(0, 512)]), durable: false };
        assert!(matches!(run(&mut disk, write), Err(DiskError::ReadOnly)));
        assert!(matches!(run(&mut disk, Request::Discard { offset: 0, len: 512 }), Err(DiskError::ReadOnly)));
        run(&mut disk, Request::Flush).unwrap();
    });
}

#[test]
fn discarded_and_unmapped_space_goes_back_to_the_host_and_reads_as_zeroes() {
    let len = 1 << 20;
    let file = image(&vec![0x5a; len]);
    all_ways(file.path(), false, |mut disk| {
        file.as_file().write_all_at(&vec![0x5a; len], 0).unwrap();
        file.as_file().sync_all().unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        run(&mut disk, Request::Discard { offset: 0, len: 256 << 10 }).unwrap();
        let zero = |offset, unmap| Request::WriteZeroes { offset, len: 256 << 10, unmap, durable: true };
        run(&mut disk, zero(256 << 10, true)).unwrap();
        run(&mut disk, zero(512 << 10, false)).unwrap();
        let after = file.as_file().metadata().unwrap().blocks();
        assert!(before - after >= 2 * (256 << 10) / 512, "{before} blocks, then {after}");
        let mut seen = vec![1; len];
        file.as_file().read_exact_at(&mut seen, 0).unwrap();
        assert!(seen[..768 << 10].iter().all(|&b| b == 0) && seen[768 << 10..].iter().all(|&b| b == 0x5a));
    });
}

#[test]
fn a_writer_has_its_image_alone_and_readers_share_theirs() {
    let file = image(&[0; 4096]);
    let open = |readonly| RawDisk::open(file.path(), options(readonly, false)).map(drop);
    let writer = RawDisk::open(file.path(), options(false, false)).unwrap();
    for readonly in [false, true] {
        let error = open(readonly).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }));
        assert!(error.to_string().contains("in use"), "{error}");
    }
    drop(writer);
    let reader = RawDisk::open(file.path(), options(true, false)).unwrap();
    open(true).unwrap();
    assert!(matches!(open(false), Err(OpenError::InUse { .. })));
    drop(reader);
    open(false).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| RawDisk::open(path, options(true, true)).map(drop).unwrap_err();
    assert!(matches!(open(folder.path()), OpenError::NoDisk { .. }));
    assert!(matches!(open(Path::new("/dev/null")), OpenError::NoDisk { .. }));
    let missing = folder.path().join("missing.img");
    let error = open(&missing);
    assert!(matches!(error, OpenError::Host { action: "open", .. }));
    assert!(error.to_string().contains("missing.img"), "{error}");
    let empty = folder.path().join("empty.img");
    File::create(&empty).unwrap();
    assert!(matches!(open(&empty), OpenError::Empty { .. }));
}

#[test]
fn a_full_file_system_is_told_from_other_failures() {
    assert!(matches!(DiskError::from_errno(libc::ENOSPC), DiskError::Full));
    assert!(matches!(DiskError::from_errno(libc::EDQUOT), DiskError::Full));
    assert!(matches!(DiskError::from_errno(libc::EIO), DiskError::Host(_)));
}

#[test]
fn many_requests_at_once_complete_once_each_and_signal_the_event() {
    let file = image(&vec![3; 1 << 20]);
    all_ways(file.path(), false, |mut disk| {
        let memory = GuestMemory::new(RAM).unwrap();
        for token in 0..700 {
            let at = token % 2048 * 512;
            disk.submit(token, Request::Read { offset: at, buffers: buffers(&memory, &[(at, 512)]) });
        }
        disk.kick();
        let mut seen = vec![false; 700];
        let mut left = 700;
        while left > 0 {
            let mut poll = libc::pollfd { fd: disk.event(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd that lives here.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
            let mut count = 0u64;
            // SAFETY: an eventfd gives eight bytes, which there is room for.
            unsafe { libc::read(disk.event(), (&raw mut count).cast(), 8) };
            while let Some(Completion { token, result }) = disk.completed() {
                result.unwrap();
                assert!(!std::mem::replace(&mut seen[token as usize], true), "{token} completed twice");
                left -= 1;
            }
        }
    });
}

#[derive(Debug, Clone)]
enum Op {
    Read { sector: u64, runs: Vec<(u64, usize)> },
    Write { sector: u64, runs: Vec<(u64, usize)> },
    Zero { sector: u64, count: u64, unmap: bool },
    Flush,
}

#[test]
fn writes_in_a_row_are_one_and_a_read_between_them_sees_those_before() {
    let memory = GuestMemory::new(RAM).unwrap();
    let bytes = fill(&memory, 11);
    let file = image(&vec![0; 3 << 20]);
    all_ways(file.path(), false, |mut disk| {
        // Backwards in memory, forwards on the disk, with a gap and a step back; more than is joined to one.
        let places: Vec<u64> = (0..300u64).chain(400..410).chain(350..360).collect();
        for (token, &at) in places.iter().enumerate() {
            let from = 4096 * (500 - token as u64);
            let buffers = buffers(&memory, &[(from, 4096)]);
            disk.submit(token as u64, Request::Write { offset: at * 4096, buffers, durable: token == 7 });
        }
        // Through the page cache what comes later sees what came before, also where that is not done at once.
        if disk.is_direct() {
            disk.drain();
        }
        disk.submit(1001, Request::Read { offset: 359 * 4096, buffers: buffers(&memory, &[(7 << 19, 4096)]) });
        disk.submit(1000, Request::Read { offset: 0, buffers: buffers(&memory, &[(3 << 20, 8192)]) });
        disk.drain();
        let mut tokens: Vec<u64> = std::iter::from_fn(|| disk.completed()).map(|done| done.token).collect();
        tokens.sort_unstable();
        let all: Vec<u64> = (0..places.len() as u64).chain([1000, 1001]).collect();
        assert_eq!(tokens, all);
        let mut found = vec![0; 4096];
        for (token, &at) in places.iter().enumerate() {
            file.as_file().read_exact_at(&mut found, at * 4096).unwrap();
            let from = 4096 * (500 - token);
            assert!(found == bytes[from..from + 4096], "{token}");
        }
        memory.read(GuestAddress(3 << 20), &mut found).unwrap();
        assert!(found == bytes[500 * 4096..501 * 4096]);
        memory.read(GuestAddress(7 << 19), &mut found).unwrap();
        assert!(found == bytes[181 * 4096..182 * 4096]);
    });
}

#[test]
fn writes_that_were_joined_fail_together() {
    let memory = GuestMemory::new(RAM).unwrap();
    let file = image(&[0; 8192]);
    let image = Arc::new(Image::open(file.path(), options(true, false)).unwrap());
    let mut pool = pool::Pool::new(pool::Way::Best).unwrap();
    for at in 0..3u64 {
        pool.start(at, &image, job::Job::write(at * 512, buffers(&memory, &[(0, 512)])));
    }
    pool.wait();
    let ended: Vec<_> = std::iter::from_fn(|| pool.completed()).collect();
    assert_eq!(ended.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(ended.iter().all(|(_, result)| matches!(result, Err(DiskError::Host(_)))));
    assert_eq!(pool.running(), 0);
}

/// Runs of any alignment that add up to whole sectors.
fn runs() -> impl Strategy<Value = Vec<(u64, usize)>> {
    (1..40usize, prop::collection::vec((0..RAM / 2, any::<bool>()), 1..6)).prop_map(|(sectors, places)| {
        let (mut left, count) = (sectors * 512, places.len());
        let mut runs = Vec::new();
        for (i, (at, align)) in places.into_iter().enumerate() {
            let len = if i + 1 == count { left } else { left * (i + 1) / (count + 2) };
            let (at, len) = if align { (at & !511, len) } else { (at, len) };
            runs.push((at, len));
            left -= len;
        }
        runs
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..200u64, runs()).prop_map(|(sector, runs)| Op::Read { sector, runs }),
        3 => (0..200u64, runs()).prop_map(|(sector, runs)| Op::Write { sector, runs }),
        1 => (0..200u64, 1..56u64, any::<bool>()).prop_map(|(sector, count, unmap)| Op::Zero { sector, count, unmap }),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_does_what_its_model_does(ops in prop::collection::vec(op(), 1..30), seed: u64, direct: bool, thread: bool) {
        let mut model = vec![0u8; 256 * 512];
        let file = image(&model);
        let open = if thread { RawDisk::open_on_a_thread } else { RawDisk::open };
        let mut disk = open(file.path(), options(false, direct)).unwrap();
        let memory = GuestMemory::new(RAM).unwrap();
        let mut ram = fill(&memory, seed);
        for op in ops {
            match op {
                Op::Read { sector, runs } => {
                    let offset = sector * 512;
                    run(&mut disk, Request::Read { offset, buffers: buffers(&memory, &runs) }).unwrap();
                    // Runs that overlap hold either's bytes; they are not looked at twice.
                    let mut at = offset as usize;
                    let mut seen = Vec::new();
                    for (i, &(address, len)) in runs.iter().enumerate() {
                        let alone = runs.iter().enumerate().all(|(j, &(a, l))| {
                            i == j || a + l as u64 <= address || a >= address + len as u64
                        });
                        if alone {
                            seen.resize(len, 0);
                            memory.read(GuestAddress(address), &mut seen).unwrap();
                            prop_assert!(seen == model[at..at + len]);
                        }
                        at += len;
                    }
                    memory.read(GuestAddress(0), &mut ram).unwrap();
                }
                Op::Write { sector, runs } => {
                    let offset = sector * 512;
                    run(&mut disk, Request::Write { offset, buffers: buffers(&memory, &runs), durable: false }).unwrap();
                    let mut at = offset as usize;
                    for (address, len) in runs {
                        model[at..at + len].copy_from_slice(&ram[address as usize..address as usize + len]);
                        at += len;
                    }
                }
                Op::Zero { sector, count, unmap } => {
                    let (offset, len) = (sector * 512, count * 512);
                    run(&mut disk, Request::WriteZeroes { offset, len, unmap, durable: false }).unwrap();
                    model[offset as usize..(offset + len) as usize].fill(0);
                }
                Op::Flush => run(&mut disk, Request::Flush).unwrap(),
            }
        }
        drop(disk);
        let mut seen = vec![1; model.len()];
        file.as_file().read_exact_at(&mut seen, 0).unwrap();
        prop_assert!(seen == model);
    }
}
