//! qcow2 images as a device uses them, beside `qemu-img bench` and plain system calls, on files of the same size and
//! layout: 4 KiB requests, 32 beside each other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vmm_core::backend::disk::{
    Buffers, CreateOptions, Disk, Format, OpenOptions, Qcow2Disk, Request, create, create_overlay,
};
use vmm_core::base::{GuestAddress, GuestMemory};

use crate::Bench;
use crate::figures::{Figure, Report, Series};

const ROUNDS: usize = 5;
const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 4096;
const DEPTH: usize = 32;

/// One kind of load.
struct Load {
    name: &'static str,
    write: bool,
    /// Past the page cache.
    direct: bool,
    count: u64,
    /// From one request to the next, bytes.
    step: u64,
    /// What the image is when it begins.
    image: Image,
}

#[derive(Clone, Copy, PartialEq)]
enum Image {
    /// Nothing is in it.
    Empty,
    /// All of what is touched is in it.
    Full,
    /// A fresh overlay on a full one.
    Overlay,
}

const LOADS: &[Load] = &[
    Load { name: "allocating writes", write: true, direct: false, count: 65536, step: BLOCK, image: Image::Empty },
    Load { name: "rewrites", write: true, direct: false, count: 65536, step: BLOCK, image: Image::Full },
    Load { name: "reads", write: false, direct: false, count: 65536, step: BLOCK, image: Image::Full },
    Load {
        name: "first rewrites after a snapshot",
        write: true,
        direct: false,
        count: 4096,
        step: 65536,
        image: Image::Overlay,
    },
    Load { name: "direct rewrites", write: true, direct: true, count: 32768, step: BLOCK, image: Image::Full },
    Load { name: "direct reads", write: false, direct: true, count: 32768, step: BLOCK, image: Image::Full },
];

/// What a run took for each request, microseconds.
#[derive(Clone, Copy)]
struct Cost {
    time: f64,
    processor: f64,
}

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let full = bench.scratch.path().join("full.qcow2");
    create(&full, CreateOptions::thin(SIZE))?;
    let mut disk = Qcow2Disk::open(&full, OpenOptions { readonly: false, direct: false })?;
    drive(&mut disk, true, SIZE / BLOCK, BLOCK)?;
    drop(disk);
    for load in LOADS {
        measure_load(bench, report, load, &full)?;
    }
    Ok(())
}

fn measure_load(bench: &Bench, report: &mut Report, load: &Load, full: &Path) -> Result<()> {
    let ways: &[&str] = if load.direct { &["native", "io_uring"] } else { &["threads", "io_uring"] };
    let peer = |way: &&str| Series::new(format!("qemu-img bench, {way}"));
    let mut times = (Series::new("Orangery"), ways.iter().map(peer).collect::<Vec<_>>());
    let mut processor = (Series::new("Orangery"), ways.iter().map(peer).collect::<Vec<_>>());
    let mut plain = Series::new("pread and pwrite on a raw file");
    for _ in 0..ROUNDS {
        let cost = ours(bench, load, full)?;
        times.0.samples.push(cost.time);
        processor.0.samples.push(cost.processor);
        for (i, way) in ways.iter().enumerate() {
            let cost = qemu(bench, load, full, way)?;
            times.1[i].samples.push(cost.time);
            processor.1[i].samples.push(cost.processor);
        }
        if !load.direct && load.image == Image::Full {
            plain.samples.push(raw(bench, load)?.processor);
        }
    }
    if !plain.samples.is_empty() {
        processor.1.push(plain);
    }
    let name = format!("qcow2, 4 KiB {}", load.name);
    let mut add = |what: &str, (ours, others): (Series, Vec<Series>)| {
        report.add(Figure { name: format!("{name}: {what}"), unit: "µs", more_is_better: false, ours, others });
    };
    add("time of each", times);
    add("processor time of each", processor);
    Ok(())
}

/// The image that a load begins with; `ours`: with the clusters that we choose for it.
fn prepare(bench: &Bench, load: &Load, full: &Path, ours: bool) -> Result<PathBuf> {
    let path = bench.scratch.path().join("load.qcow2");
    let _ = fs::remove_file(&path);
    match load.image {
        Image::Full => return Ok(full.to_owned()),
        Image::Empty => create(&path, CreateOptions::thin(SIZE))?,
        Image::Overlay => {
            let thin = CreateOptions { refcount_bits: 16, ..CreateOptions::thin(SIZE) };
            let options = if ours { CreateOptions::overlay(SIZE) } else { thin };
            create_overlay(&path, Path::new("full.qcow2"), Format::Qcow2, options)?;
        }
    }
    Ok(path)
}

fn ours(bench: &Bench, load: &Load, full: &Path) -> Result<Cost> {
    let path = prepare(bench, load, full, true)?;
    let options = OpenOptions { readonly: false, direct: load.direct };
    let (time, processor) = (Instant::now(), processor_time(libc::RUSAGE_SELF));
    let mut disk = Qcow2Disk::open(&path, options)?;
    drive(&mut disk, load.write, load.count, load.step)?;
    // qemu-img writes its tables at the end and waits for no drive.
    let cost = cost(load, time.elapsed().as_secs_f64(), processor_time(libc::RUSAGE_SELF) - processor);
    drop(disk);
    Ok(cost)
}

fn cost(load: &Load, time: f64, processor: f64) -> Cost {
    let each = |seconds: f64| seconds * 1e6 / load.count as f64;
    Cost { time: each(time), processor: each(processor) }
}

/// Keeps so many requests on their way until all are done.
fn drive(disk: &mut dyn Disk, write: bool, count: u64, step: u64) -> Result<()> {
    let memory = GuestMemory::new(DEPTH as u64 * BLOCK).context("could not make guest memory")?;
    let (mut next, mut left) = (0, count);
    let mut submit = |disk: &mut dyn Disk, slot: usize| {
        if next < count {
            let offset = next * step % SIZE;
            let run = (GuestAddress(slot as u64 * BLOCK), BLOCK as usize);
            let buffers = Buffers::from_runs(&memory, &[run])?;
            next += 1;
            let request = if write {
                Request::Write { offset, buffers, durable: false }
            } else {
                Request::Read { offset, buffers }
            };
            disk.submit(slot as u64, request);
        }
        anyhow::Ok(())
    };
    (0..DEPTH).try_for_each(|slot| submit(disk, slot))?;
    while left > 0 {
        disk.kick();
        let before = left;
        while let Some(completion) = disk.completed() {
            completion.result.context("a request failed")?;
            left -= 1;
            submit(disk, completion.token as usize)?;
        }
        if left == before {
            let mut poll = libc::pollfd { fd: disk.event(), events: libc::POLLIN, revents: 0 };
            let mut signalled = 0u64;
            // SAFETY: one pollfd, and the eight bytes that an eventfd gives, both of which live here.
            unsafe {
                libc::poll(&raw mut poll, 1, -1);
                libc::read(disk.event(), (&raw mut signalled).cast(), 8);
            }
        }
    }
    Ok(())
}

fn qemu(bench: &Bench, load: &Load, full: &Path, way: &str) -> Result<Cost> {
    let path = prepare(bench, load, full, false)?;
    let mut command = Command::new("qemu-img");
    let (count, step, depth) = (load.count.to_string(), load.step.to_string(), DEPTH.to_string());
    command.args(["bench", "-f", "qcow2", "-c", &count, "-S", &step, "-s", "4096", "-d", &depth, "-i", way]);
    command.args(["-t", if load.direct { "none" } else { "writeback" }]);
    if load.write {
        command.arg("-w");
    }
    let processor = processor_time(libc::RUSAGE_CHILDREN);
    let output = command.arg(&path).output().context("could not start qemu-img (package qemu-utils)")?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "qemu-img bench failed: {}", String::from_utf8_lossy(&output.stderr));
    let time = words.lines().find_map(|line| line.strip_prefix("Run completed in ")?.split(' ').next()?.parse().ok());
    let time = time.context("qemu-img bench gave no time")?;
    Ok(cost(load, time, processor_time(libc::RUSAGE_CHILDREN) - processor))
}

/// One system call after another.
fn raw(bench: &Bench, load: &Load) -> Result<Cost> {
    let path = bench.scratch.path().join("plain.raw");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut block = vec![1u8; BLOCK as usize];
    if file.metadata()?.len() == 0 {
        (0..load.count).try_for_each(|i| file.write_all_at(&block, i * load.step % SIZE))?;
    }
    let (time, processor) = (Instant::now(), processor_time(libc::RUSAGE_SELF));
    for i in 0..load.count {
        let offset = i * load.step % SIZE;
        if load.write { file.write_all_at(&block, offset)? } else { file.read_exact_at(&mut block, offset)? }
    }
    Ok(cost(load, time.elapsed().as_secs_f64(), processor_time(libc::RUSAGE_SELF) - processor))
}

/// Seconds that processors worked for this process, or for children that have ended.
fn processor_time(whose: libc::c_int) -> f64 {
    // SAFETY: rusage is plain data for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the struct, which lives here.
    unsafe { libc::getrusage(whose, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
