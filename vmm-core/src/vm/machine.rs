//! A built machine as a whole: run, pause, reset. What it is made of is decided in `build.rs`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::boot_plan::BootPlan;
use super::build::Parts;
use super::capture::{Capture, DiskSwitch};
use super::{BuildError, CommandError};
use crate::backend::disk::{Medium, Switch};
use crate::backend::display::Mode;
use crate::base::{Component, PageRun, PageTable, Section, SharePass, StateError, WorkerThread, explain};
use crate::boot::BootError;
use crate::checkpoint::{Checkpoint, Moment};
use crate::kvm::{self, ChipState, CpuSaveError, CpuState, KvmError, KvmVm, SavedCpu};
use crate::pci::PciRoot;
use crate::vcpu::{CpuEvent, VcpuThread};

/// Pages that are shared in a moment: 4 MiB.
const LITTLE_RAM: u64 = 1024;
/// How long a guest is stopped, about, while a part of its RAM is shared ahead of a fork.
const SHARE_PATIENCE: Duration = Duration::from_millis(4);

/// What a machine tells its control thread.
#[derive(Debug)]
pub(super) enum Notice {
    /// A CPU parked itself, in the life between two resets that it counts.
    Cpu {
        /// See [`Machine::generation`].
        generation: u64,
        /// Why.
        event: CpuEvent,
    },
    /// A device's driver or the host did something wrong.
    Problem {
        /// The device.
        source: String,
        /// What happened.
        message: String,
    },
    /// A device can't go on until the host is mended.
    Stalled {
        /// The device.
        source: String,
        /// Why.
        message: String,
    },
    /// The guest opened a CD-ROM drive.
    Ejected {
        /// Which.
        drive: usize,
    },
    /// A thread of the machine panicked.
    Defect(String),
}

/// Why a reset failed: the machine can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResetError {
    #[error("the CPUs or interrupt controllers can't be set")]
    Kvm(#[from] KvmError),
    #[error("what it starts can't be loaded again")]
    Boot(#[from] BootError),
    #[error("a CPU's thread is gone")]
    Gone,
}

/// A virtual machine with all its threads.
///
/// The order of the fields is the order in which they are dropped: CPUs first, then the threads of the devices.
pub(super) struct Machine {
    pub cpus: Vec<VcpuThread>,
    pub fresh_cpus: Vec<CpuState>,
    pub fresh_chips: ChipState,
    /// In the order in which they are started; stopped the other way round.
    pub components: Vec<Arc<dyn Component>>,
    pub parts: Parts,
    pub boot: BootPlan,
    pub root: Arc<PciRoot>,
    pub kvm: Arc<KvmVm>,
    pub generation: Arc<AtomicU64>,
    /// Kept for their threads, which end when they are dropped.
    pub _workers: Vec<Arc<WorkerThread>>,
}

fn not_shared(error: std::io::Error) -> CommandError {
    CommandError(format!("the guest's memory can't be shared: {error}"))
}

impl Machine {
    /// Counts the resets.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Devices go on, then CPUs.
    pub(super) fn resume(&self) {
        for component in &self.components {
            component.resume();
        }
        for cpu in &self.cpus {
            cpu.run();
        }
    }

    /// CPUs stop, then devices.
    pub(super) fn pause(&self) {
        // All are asked before any is waited for.
        let parked: Vec<_> = self.cpus.iter().map(VcpuThread::park).collect();
        for cpu in parked {
            // A thread that is gone is as good as parked.
            let _ = cpu.recv();
        }
        for component in self.components.iter().rev() {
            component.pause();
        }
    }

    /// Back to power-on, and on from there where it ran.
    pub(super) fn reset(&self, run: bool) -> Result<(), ResetError> {
        self.pause();
        self.generation.fetch_add(1, Ordering::SeqCst);
        for component in &self.components {
            component.reset();
        }
        self.root.refresh();
        self.kvm.set_chips(&self.fresh_chips)?;
        for (cpu, fresh) in self.cpus.iter().zip(&self.fresh_cpus) {
            let fresh = fresh.clone();
            cpu.with(move |cpu| cpu.power_on(&fresh)).ok_or(ResetError::Gone)??;
        }
        let entry = self.boot.prepare(self.kvm.memory(), &self.root)?;
        if let (Some(entry), Some(first)) = (entry, self.cpus.first()) {
            first.with(move |cpu| super::build::enter(cpu, entry)).ok_or(ResetError::Gone)??;
        }
        if run {
            self.resume();
        }
        Ok(())
    }

    /// CPUs and devices as they are. Nothing of the machine runs.
    fn save(&self) -> Result<Vec<Section>, CommandError> {
        let refused = |error: &(dyn std::error::Error + 'static)| CommandError(explain(error));
        let mut sections = vec![self.kvm.save().map_err(|e| refused(&e))?];
        for cpu in &self.cpus {
            let saved = cpu.with(|cpu| cpu.save()).ok_or_else(|| refused(&ResetError::Gone))?;
            sections.push(saved.map_err(|e| refused(&e))?);
        }
        for component in &self.components {
            sections.push(component.save().map_err(|e| refused(&e))?);
        }
        Ok(sections)
    }

    /// Has disks go on with other images; what they were is returned. If one can't, none does.
    fn exchange(&self, disks: &[DiskSwitch]) -> Result<Vec<DiskSwitch>, CommandError> {
        let mut before = Vec::new();
        for DiskSwitch { disk, path, onto } in disks {
            let exchanged = match self.parts.disks.get(*disk) {
                Some(Some(switch)) => {
                    let old = switch.path();
                    switch.exchange(path, onto.as_ref()).map(|()| old).map_err(|error| explain(&error))
                }
                _ => Err(format!("there is no disk {disk} that could be written to")),
            };
            match exchanged {
                Ok(old) => before.push(DiskSwitch { disk: *disk, path: old, onto: None }),
                Err(why) => {
                    self.undo(before);
                    return Err(CommandError(why));
                }
            }
        }
        Ok(before)
    }

    /// Has disks go on with what they were.
    fn undo(&self, before: Vec<DiskSwitch>) {
        for DiskSwitch { disk, path, onto } in before {
            if let Some(Some(switch)) = self.parts.disks.get(disk) {
                // The image was open a moment ago; one that is lost fails the guest's requests.
                let _ = switch.exchange(&path, onto.as_ref());
            }
        }
    }

    /// Everything at this moment, RAM in layers that this machine and another share. Nothing of the machine runs.
    pub(super) fn fork(&self, disks: &[DiskSwitch]) -> Result<(Vec<Section>, PageTable), CommandError> {
        let sections = self.save()?;
        let exchanged = self.exchange(disks)?;
        let pages = self.kvm.memory().share().map_err(|error| {
            self.undo(exchanged);
            not_shared(error)
        })?;
        Ok((sections, pages))
    }

    /// Whether sharing RAM now would keep the guest waiting for more than a moment; it may run meanwhile.
    pub(super) fn has_much_to_share(&self) -> Result<bool, CommandError> {
        Ok(self.kvm.memory().unshared().map_err(not_shared)? > LITTLE_RAM)
    }

    /// Begins to share RAM ahead of a fork.
    pub(super) fn share_pass(&self) -> Result<SharePass, CommandError> {
        self.kvm.memory().share_pass().map_err(not_shared)
    }

    /// Shares a part of RAM ahead of a fork, and says whether there is more. Nothing of the machine runs.
    pub(super) fn share_ahead(&self, pass: &mut SharePass) -> Result<bool, CommandError> {
        self.kvm.memory().share_ahead(pass, Instant::now() + SHARE_PATIENCE).map_err(not_shared)
    }

    /// Has disks go on with other images while nothing of the machine runs.
    pub(super) fn switch_disks(&self, disks: &[DiskSwitch]) -> Result<(), CommandError> {
        self.exchange(disks).map(drop)
    }

    /// Everything at this moment: nothing of the machine runs now. RAM is still to be copied; with `going_on`, while it runs.
    pub(super) fn moment(&self, capture: Capture) -> Result<Moment, CommandError> {
        let sections = self.save()?;
        let Capture { going_on, disks, to, known, old } = capture;
        let exchanged = self.exchange(&disks)?;
        // RAM that goes on knows of all that was written. What was exchanged is on stable storage already.
        let kept = self.parts.disks.iter().enumerate().filter(|(disk, _)| disks.iter().all(|d| d.disk != *disk));
        if let Err(error) = kept.filter_map(|(_, switch)| switch.as_ref()).try_for_each(Switch::settle) {
            self.undo(exchanged);
            return Err(CommandError(explain(&error)));
        }
        let (memory, base) = (self.kvm.memory(), self.kvm.memory().layers());
        let nowhere = |layer: &crate::base::Layer| layer.name().is_none_or(|name| !known.iter().any(|k| k == name));
        let more: Vec<PageRun> = base.iter().filter(|(_, layer)| nowhere(layer)).map(|(run, _)| run).collect();
        let (pages, old) = old.unzip();
        let (copy, layer) = memory.copy(going_on, &more, pages, to).map_err(|error| {
            self.undo(exchanged);
            CommandError(format!("the guest's memory can't be copied: {error}"))
        })?;
        Ok(Moment { sections, size: memory.size(), copy, base, old: old.unwrap_or_default(), layer })
    }

    /// Takes over a checkpoint. The machine was just built, and nothing of it runs.
    pub(super) fn restore(&self, checkpoint: &Checkpoint, cpus: &[SavedCpu]) -> Result<(), BuildError> {
        let mut rest: Vec<&Section> = checkpoint.sections.iter().collect();
        let mut take = |name: &str| {
            let place = rest.iter().position(|section| section.name == name);
            place.map(|place| rest.swap_remove(place)).ok_or_else(|| StateError::invalid(name, "it is missing"))
        };
        let elapsed = self.kvm.restore(take(kvm::CHIPS)?)?;
        for index in 0..self.cpus.len() as u32 {
            take(&kvm::cpu_section(index))?;
        }
        for component in &self.components {
            component.restore(take(&component.name())?)?;
        }
        if let Some(section) = rest.first() {
            return Err(StateError::invalid(&section.name, "this machine has no such device").into());
        }
        self.root.refresh();
        let tsc = cpus.first().and_then(|first| first.tsc_after(elapsed));
        for (cpu, saved) in self.cpus.iter().zip(cpus) {
            let saved = saved.clone();
            let restored = cpu.with(move |cpu| cpu.restore(&saved, tsc)).ok_or(BuildError::Defect)?;
            restored.map_err(CpuSaveError::from)?;
        }
        Ok(())
    }

    pub(super) fn press_power_button(&self) {
        self.parts.power.press_power_button();
    }

    pub(super) fn renew_generation(&self, id: [u8; 16]) {
        self.parts.generation_id.renew(id);
    }

    pub(super) fn resize_display(&self, width: u32, height: u32) {
        self.parts.monitor.resize(Mode { width, height });
    }

    /// Puts a medium in a CD-ROM drive, or takes it out.
    pub(super) fn change_medium(&self, drive: usize, path: Option<&Path>) -> Result<(), CommandError> {
        let refused = |error: &(dyn std::error::Error + 'static)| CommandError(explain(error));
        let Some(drives) = &self.parts.drives else {
            return Err(CommandError("the virtual machine has no CD-ROM drive".into()));
        };
        let medium = path.map(Medium::open).transpose().map_err(|e| refused(&e))?;
        drives.change(drive, medium, false).map_err(|e| refused(&e))
    }
}
