//! Disk images of any format, as hostile as can be: opened, read, written where that is allowed, checked, and repaired.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use vmm_core::backend::disk::foreign::{Foreign, ForeignDisk};
use vmm_core::backend::disk::tools::{self, Job};
use vmm_core::backend::disk::{Buffers, Disk, OpenOptions, Qcow2Disk, Request, Scratch};

const KINDS: [Foreign; 4] = [Foreign::Vmdk, Foreign::Vdi, Foreign::Vhd, Foreign::Vhdx];
/// VHDX keeps its tables far from its start: each piece of the input goes to one of these places.
const PLACES: [u64; 8] = [0, 64 << 10, 128 << 10, 192 << 10, 1 << 20, 2 << 20, 3 << 20, 256 << 10];

fn perform(disk: &mut Qcow2Disk, request: Request) {
    disk.submit(0, request);
    disk.drain();
    while disk.completed().is_some() {}
}

fn buffers() -> Buffers {
    Buffers::own(&std::sync::Arc::new(Scratch::new(4096)), 4096)
}

fn qcow2(path: &PathBuf) {
    for readonly in [true, false] {
        let Ok(mut disk) = Qcow2Disk::open(path, OpenOptions { readonly, direct: false }) else { continue };
        let size = disk.geometry().size;
        for offset in [0, size / 2 / 512 * 512, size.saturating_sub(4096)] {
            perform(&mut disk, Request::Read { offset, buffers: buffers() });
            if !readonly {
                perform(&mut disk, Request::Write { offset, buffers: buffers(), durable: false });
                perform(&mut disk, Request::WriteZeroes { offset, len: 1 << 20, unmap: true, durable: true });
                perform(&mut disk, Request::Discard { offset, len: 1 << 20 });
            }
        }
    }
    let cancel = AtomicBool::new(false);
    for repair in [false, true] {
        let _ = tools::check(path, repair, &mut Job { progress: &mut |_, _| (), cancel: &cancel });
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    // In memory, one for each process.
    let path = PathBuf::from(format!("/dev/shm/orangery-fuzz-{}.img", std::process::id()));
    let mut file = File::create(&path).expect("a file");
    if first & 8 != 0 {
        let part = data.len().div_ceil(PLACES.len()).max(1);
        for (bytes, at) in data.chunks(part).zip(PLACES) {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).expect("room");
        }
    } else {
        file.write_all(data).expect("room");
    }
    if first & 16 != 0 {
        let length = file.metadata().expect("a length").len();
        file.set_len((length + (4 << 20)).next_multiple_of(512)).expect("room");
    }
    drop(file);
    match KINDS.get(usize::from(first & 7)) {
        None => qcow2(&path),
        Some(&kind) => {
            if let Ok(mut disk) = ForeignDisk::open(&path, kind) {
                let mut bytes = vec![0; 4096];
                for offset in [0, disk.size() / 2, disk.size().saturating_sub(100)] {
                    let _ = disk.extent(offset.min(disk.size() - 1));
                    let _ = disk.read(offset, &mut bytes);
                }
            }
        }
    }
    let _ = tools::info(&path);
    if first & 32 != 0 {
        let mut steps = 0;
        let cancel = AtomicBool::new(false);
        let mut progress = |_, _| {
            steps += 1;
            cancel.store(steps > 50, std::sync::atomic::Ordering::Relaxed);
        };
        let _ = tools::compact(&path, &mut Job { progress: &mut progress, cancel: &cancel });
    }
});
