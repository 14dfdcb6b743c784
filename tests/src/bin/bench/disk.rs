//! Disks as the probe's drivers see them, on the same raw file: virtio-blk, SATA with queued commands, and
//! NVMe with one queue.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Bench;
use crate::figures::{Figure, Report, Series};
use crate::guest::{Guest, Monitor};

const ROUNDS: usize = 3;
/// Larger than what a drive's own memory hides, small enough to be written in a moment.
const SIZE_MIB: usize = 512;

/// What the probe calls a benchmark, after the controller's name, with its unit.
const BENCHES: &[(&str, &str, &str)] = &[
    ("seq-read", "MB/s", "sequential reads of 1 MiB"),
    ("seq-write", "MB/s", "sequential writes of 1 MiB"),
    ("rand-read", "IOPS", "random reads of 4 KiB"),
    ("rand-write", "IOPS", "random writes of 4 KiB"),
];

/// A disk's controller.
struct Controller {
    /// For tables.
    name: &'static str,
    /// In the names of the probe's benchmarks.
    probe: &'static str,
    /// Our name for it.
    bus: &'static str,
    /// QEMU's device, for the drive `disk` and the thread `io`.
    device: &'static str,
}

const CONTROLLERS: &[Controller] = &[
    Controller {
        name: "virtio-blk",
        probe: "blk",
        bus: "virtio",
        device: "virtio-blk-pci,drive=disk,disable-legacy=on,iothread=io",
    },
    // QEMU's AHCI has no thread of its own.
    Controller { name: "SATA", probe: "sata", bus: "sata", device: "ide-hd,drive=disk,bus=ide.0" },
    // Nor has its NVMe; transfers of 1 MiB have to be allowed, and doorbells without an exit asked for.
    Controller { name: "NVMe", probe: "nvme", bus: "nvme", device: "nvme,drive=disk,serial=bench,mdts=8,ioeventfd=on" },
];
/// QEMU's ways to the file; ours is past the page cache where the file system allows it, as `cache=none` is.
const PEERS: &[&str] = &["cache=none,aio=io_uring", "cache=writeback,aio=threads"];

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let path = bench.scratch.path().join("disk.raw");
    let mut file = File::create(&path).context("could not create a disk")?;
    // A hole would be read without the drive.
    let block: Vec<u8> = (0..1u32 << 18).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    for _ in 0..SIZE_MIB {
        file.write_all(&block).context("could not fill a disk")?;
    }
    file.sync_all().context("could not fill a disk")?;
    drop(file);

    CONTROLLERS.iter().try_for_each(|controller| measure_controller(bench, report, controller, &path))
}

fn measure_controller(bench: &Bench, report: &mut Report, controller: &Controller, path: &Path) -> Result<()> {
    let name = |peer: usize| match peer.checked_sub(1) {
        None => String::from("Orangery"),
        Some(peer) => format!("QEMU q35, {}", PEERS[peer]),
    };
    let new = || (0..=PEERS.len()).map(|peer| Series::new(name(peer))).collect::<Vec<_>>();
    let mut results: Vec<Vec<Series>> = BENCHES.iter().map(|_| new()).collect();
    let names: Vec<String> = BENCHES.iter().map(|(name, ..)| format!("{}-{name}", controller.probe)).collect();
    let words = format!("bench={}", names.join(","));
    for _ in 0..ROUNDS {
        for peer in 0..=PEERS.len() {
            let monitor = if peer == 0 { Monitor::Orangery } else { Monitor::Q35Qboot };
            let mut command = monitor.command(bench, &words);
            if peer == 0 {
                command.arg("--disk").arg(format!("{},bus={}", path.display(), controller.bus));
            } else {
                let drive = format!("file={},format=raw,if=none,id=disk,{}", path.display(), PEERS[peer - 1]);
                command.args(["-drive", &drive, "-object", "iothread,id=io", "-device", controller.device]);
            }
            let values = Guest::start(monitor, command)?.benches()?;
            for (bench, series) in names.iter().zip(&mut results) {
                let value = values.get(bench).with_context(|| format!("{} did not measure {bench}", name(peer)))?;
                series[peer].samples.push(*value);
            }
        }
    }
    for ((_, unit, what), mut series) in BENCHES.iter().zip(results) {
        let ours = series.remove(0);
        let name = format!("{}, {what}", controller.name);
        report.add(Figure { name, unit, more_is_better: true, ours, others: series });
    }
    Ok(())
}
