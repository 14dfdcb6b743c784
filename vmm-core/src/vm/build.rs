//! From a configuration to a machine: one linear recipe. A new device is one row here.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use super::boot_plan::{BootPlan, random_uuid};
use super::control::Message;
use super::generation::Generation;
use super::machine::{Machine, Notice};
use super::{BuildError, Ports};
use crate::backend::disk::{Disk, Medium, OpenOptions, Switch, SwitchDisk};
use crate::backend::display::Mode;
use crate::backend::monitor::Monitor;
use crate::backend::net::{NetPort, Tap, Unplugged};
use crate::backend::tpm::TpmBackend;
use crate::base::{Component, Executor, GuestMemory, StateError, WorkerThread};
use crate::boot::linux::Entry;
use crate::checkpoint::Checkpoint;
use crate::config::{Boot, Cache, DiskBus, VmConfig};
use crate::devices::ahci::{Ahci, AhciParts, Drive};
use crate::devices::chipset::{HostBridge, Lpc, Pirq};
use crate::devices::legacy::{
    Apm, CmosSizes, DebugCon, FwCfg, HostClock, I8042, I8042_PORTS, Pflash, PmBlock, Port92, ResetControl, Rtc, Serial,
};
use crate::devices::nvme::{self, Nvme, NvmeParts};
use crate::devices::tpm_crb::{self, TpmCrb};
use crate::devices::vga::Vga;
use crate::devices::virtio_balloon::Balloon;
use crate::devices::virtio_blk::Blk;
use crate::devices::virtio_console::Console;
use crate::devices::virtio_gpu::Gpu;
use crate::devices::virtio_input::Input;
use crate::devices::virtio_net::{self, Net};
use crate::devices::virtio_rng::Rng;
use crate::hw::{Bus, BusDevice, ProblemSink};
use crate::kvm::{CpuModel, KvmCpu, KvmError, KvmVm, SavedCpu, cpu_section};
use crate::pci::{PciAddress, PciDevice, PciRoot};
use crate::vcpu::{Buses, VcpuThread};
use crate::virtio::{Device, Face, Layout, Role, TransportParts, VirtioPci};

/// Where each function is on bus 0.
mod slot {
    pub const GPU: u8 = 1;
    pub const KEYBOARD: u8 = 2;
    pub const TABLET: u8 = 3;
    pub const RNG: u8 = 4;
    pub const CONSOLE: u8 = 5;
    pub const DISKS: u8 = 6;
    pub const NETS: u8 = 22;
    pub const BALLOON: u8 = 30;
    pub const CHIPSET: u8 = 0x1f;
}

/// Where the ports are that raise the system management interrupt.
const APM_PORTS: u64 = 0xb2;

/// What the control thread needs of single devices.
pub(super) struct Parts {
    pub power: Arc<PmBlock>,
    pub monitor: Monitor,
    pub drives: Option<Arc<Ahci>>,
    pub generation_id: Arc<Generation>,
    /// By number; none for those that are read-only.
    pub disks: Vec<Option<Switch>>,
}

fn host<T>(what: &str, result: io::Result<T>) -> Result<T, BuildError> {
    result.map_err(|source| BuildError::Host { what: what.into(), source: source.into() })
}

impl Machine {
    /// Builds everything, as it is after power-on or as a checkpoint has it; no CPU runs yet.
    pub(super) fn build(
        config: &VmConfig,
        ports: Ports,
        messages: Sender<Message>,
        mut checkpoint: Option<Checkpoint>,
    ) -> Result<Machine, BuildError> {
        config.validate().map_err(BuildError::Config)?;
        let saved_cpus = match &checkpoint {
            Some(checkpoint) => saved_cpus(config, checkpoint)?,
            None => Vec::new(),
        };
        let memory = match &mut checkpoint {
            Some(checkpoint) => GuestMemory::restored(config.memory_mib << 20, std::mem::take(&mut checkpoint.pages)),
            None => GuestMemory::new(config.memory_mib << 20),
        };
        let memory = host("could not allocate the guest's memory", memory)?;
        let uefi = BootPlan::uefi(config)?;
        let smm = uefi.as_ref().is_some_and(|uefi| uefi.smm);
        let kvm = Arc::new(KvmVm::new(&memory, smm)?);
        let buses = Buses { memory: Arc::new(Bus::default()), ports: Arc::new(Bus::default()) };
        let root = PciRoot::new(buses.memory.clone(), buses.ports.clone());
        let pirq = Pirq::new(|gsi| kvm.line(gsi));
        let problems: ProblemSink = {
            let messages = Mutex::new(messages.clone());
            Arc::new(move |source, message| notify(&messages, Notice::Problem { source: source.into(), message }))
        };
        let stalls: ProblemSink = {
            let messages = Mutex::new(messages.clone());
            Arc::new(move |source, message| notify(&messages, Notice::Stalled { source: source.into(), message }))
        };
        let mut maker = Maker {
            memory: &memory,
            kvm: &kvm,
            root: &root,
            pirq: &pirq,
            problems,
            stalls,
            messages: &messages,
            workers: HashMap::new(),
            components: Vec::new(),
        };

        // The chipset and what has been at fixed ports since before PCI.
        let io = maker.worker("io")?;
        let timers = "could not create a timer";
        let power = host(timers, PmBlock::new(Arc::new(HostClock), pirq.fixed(9), io.clone()))?;
        let power = Arc::new(if smm { power.with_smm() } else { power });
        let sizes = CmosSizes { low_ram: memory.low_top(), high_ram: memory.high_size(), cpus: config.cpus as u16 };
        let rtc = Arc::new(host(timers, Rtc::new(sizes, Arc::new(HostClock), pirq.fixed(8), io.clone()))?);
        let serial = Arc::new(Serial::new("com1", ports.serial, pirq.fixed(4), io.clone()));
        let (keys, pointer) = (ports.keyboard.clone(), ports.pointer.clone());
        let i8042 = I8042::new(keys, pointer, pirq.fixed(1), pirq.fixed(12), io.clone());
        let i8042 = Arc::new(host(timers, i8042)?);
        let reset = Arc::new(ResetControl::new(root.config_ports()));
        let port_92 = Arc::new(Port92::default());
        let bridge = HostBridge::new(buses.memory.clone(), root.ecam());
        let bridge = Arc::new(if smm { bridge.with_smm(kvm.clone()) } else { bridge });
        let lpc = Arc::new(Lpc::new(buses.ports.clone(), power.clone(), pirq.clone(), power.smi_lock()));
        let firmware = !matches!(config.boot, Boot::Kernel { .. });
        let generation_id = Arc::new(Generation::new(random_uuid()?, &memory, power.clone(), firmware));
        let mut boot = BootPlan::new(config, uefi.as_ref(), &kvm, generation_id.clone())?;
        let items = boot.firmware_items(&memory, &boot_order(config), &bridge);
        let items =
            items.map_err(|e| BuildError::Host { what: "could not describe the machine".into(), source: e.into() })?;
        let fw_cfg = Arc::new(FwCfg::new(memory.clone(), items, maker.problems.clone()));
        generation_id.connect(fw_cfg.clone());
        let fixed: [(u64, u64, Arc<dyn BusDevice>); 7] = [
            (0x60, I8042_PORTS, i8042.clone()),
            (0x70, 2, rtc.clone()),
            (0x92, 1, port_92.clone()),
            (0x3f8, 8, serial.clone()),
            (0x402, 1, Arc::new(DebugCon::new(ports.debug))),
            (0x510, 12, fw_cfg.clone()),
            (0xcf8, 8, reset.clone()),
        ];
        for (start, len, device) in fixed {
            let free = buses.ports.insert(start, len, device);
            debug_assert!(free);
        }
        root.add(PciAddress::new(0, 0), bridge.clone());
        root.add(PciAddress::new(slot::CHIPSET, 0), lpc.clone());
        let chipset: [Arc<dyn Component>; 9] = [bridge, lpc, power.clone(), rtc, serial, i8042, reset, port_92, fw_cfg];
        maker.components.extend(chipset);
        maker.components.push(generation_id.clone());
        if smm {
            let apm = Arc::new(Apm::new(power.clone(), kvm.clone()));
            let free = buses.ports.insert(APM_PORTS, 2, apm.clone());
            debug_assert!(free);
            maker.components.push(apm);
        }
        if let Some((address, variables)) = boot.take_variables() {
            let flash = Pflash::new(address, variables, kvm.clone(), io, maker.problems.clone());
            let flash = host("could not show the firmware's variables", flash)?;
            let flash = Arc::new(if smm { flash.guarded() } else { flash });
            let free = buses.memory.insert(address, flash.size(), flash.clone());
            debug_assert!(free);
            maker.components.push(flash);
        }
        if config.tpm {
            let cause = "whoever builds it must start one and connect it";
            let tpm = ports.tpm.ok_or_else(|| BuildError::Host {
                what: "the machine is to have a TPM, and none was given to it".into(),
                source: cause.into(),
            })?;
            maker.tpm(tpm, &buses)?;
        }

        // The devices behind PCI.
        let preferred = Mode { width: config.display.width, height: config.display.height };
        let monitor = host("could not create the monitor", Monitor::new(ports.display, preferred))?;
        let vga = host("could not create the VGA", Vga::new(kvm.clone(), monitor.clone()))?;
        let free = vga.attach(&buses.memory, &buses.ports);
        debug_assert!(free);
        let refresh = host("could not create the VGA", vga.refresh())?;
        maker.worker("gpu")?.submit(refresh);
        maker.virtio_with(slot::GPU, "gpu", Gpu::new(monitor.clone()), Layout::VGA, Some(vga))?;
        maker.virtio(slot::KEYBOARD, "keyboard", Input::keyboard(ports.keyboard))?;
        maker.virtio(slot::TABLET, "tablet", Input::tablet(ports.pointer))?;
        maker.virtio(slot::RNG, "rng", Rng::default())?;
        maker.virtio(slot::CONSOLE, "console", Console::new(ports.console))?;
        maker.virtio(slot::BALLOON, "balloon", Balloon::default())?;
        let (mut sata, mut disks) = (cd_drives(config)?, Vec::new());
        for (index, disk) in (0u8..).zip(&config.disks) {
            let name = format!("disk{index}");
            let options = OpenOptions { readonly: disk.readonly, direct: disk.cache == Cache::Auto };
            let (image, switch) = SwitchDisk::open(&disk.path, options).map_err(|source| BuildError::Host {
                what: format!("could not open disk {index}"),
                source: source.into(),
            })?;
            disks.push((!disk.readonly).then_some(switch));
            match disk.bus {
                DiskBus::Virtio => maker.virtio(slot::DISKS + index, &name, Blk::new(Box::new(image), &name))?,
                DiskBus::Sata => sata.push(Drive::Disk(Box::new(image), name)),
                DiskBus::Nvme => maker.nvme(slot::DISKS + index, &name, Box::new(image), config.cpus)?,
            }
        }

        for (index, net) in (0u8..).zip(&config.nets) {
            let name = format!("net{index}");
            let mac = net.mac.map_or_else(|| virtio_net::derived_mac(net.tap.as_deref().unwrap_or(&name)), |mac| mac.0);
            let port: Box<dyn NetPort> = match &net.tap {
                None => Box::new(host("could not create a network card", Unplugged::new())?),
                Some(tap) => Box::new(Tap::open(tap).map_err(|source| BuildError::Host {
                    what: format!("could not connect network card {index}"),
                    source: source.into(),
                })?),
            };
            let card = host("could not create a network card", Net::new(port, mac))?;
            maker.virtio(slot::NETS + index, &name, card)?;
        }

        let drives = if sata.is_empty() { None } else { Some(maker.sata(sata)?) };

        let Maker { workers, components, .. } = maker;
        let generation = Arc::new(AtomicU64::new(0));
        let mut cpus = Vec::new();
        let mut fresh_cpus = Vec::new();
        let entry = if checkpoint.is_none() { boot.prepare(&memory, &root)? } else { None };
        if config.hyperv {
            kvm.tolerate_unknown_registers()?;
        }
        let model = CpuModel { topology: config.topology(), hyperv: config.hyperv };
        for index in 0..config.cpus {
            let cpu = kvm.create_cpu(index, model, saved_cpus.get(index as usize))?;
            fresh_cpus.push(cpu.state()?);
            if let (0, Some(entry)) = (index, entry) {
                enter(&cpu, entry)?;
            }
            let (messages, generation) = (Mutex::new(messages.clone()), generation.clone());
            let events = move |event| {
                let generation = generation.load(std::sync::atomic::Ordering::SeqCst);
                notify(&messages, Notice::Cpu { generation, event });
            };
            cpus.push(host("could not start a CPU's thread", VcpuThread::spawn(cpu, buses.clone(), events))?);
        }
        let fresh_chips = kvm.chips()?;
        let workers = workers.into_values().collect();
        let parts = Parts { power, monitor, drives, generation_id, disks };
        let machine = Machine {
            cpus,
            fresh_cpus,
            fresh_chips,
            components,
            parts,
            boot,
            root,
            kvm,
            generation,
            _workers: workers,
        };
        if let Some(checkpoint) = checkpoint {
            machine.restore(&checkpoint, &saved_cpus)?;
        }
        Ok(machine)
    }
}

/// The CPUs of a checkpoint, which must be as many as the machine has, and its RAM as large.
fn saved_cpus(config: &VmConfig, checkpoint: &Checkpoint) -> Result<Vec<SavedCpu>, BuildError> {
    if checkpoint.size != config.memory_mib << 20 {
        return Err(StateError::invalid("memory", "the machine's has another size").into());
    }
    let section = |index| {
        let name = cpu_section(index);
        let section = checkpoint.sections.iter().find(|section| section.name == name);
        section.ok_or_else(|| StateError::invalid(name, "it is missing"))
    };
    let cpus = (0..config.cpus).map(|index| SavedCpu::decode(section(index)?)).collect::<Result<_, _>>()?;
    Ok(cpus)
}

fn notify(messages: &Mutex<Sender<Message>>, notice: Notice) {
    // A control thread that is gone needs to hear nothing.
    let messages = messages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let _ = messages.send(Message::Notice(notice));
}

/// What every device is made from.
struct Maker<'a> {
    memory: &'a GuestMemory,
    kvm: &'a Arc<KvmVm>,
    root: &'a Arc<PciRoot>,
    pirq: &'a Arc<Pirq>,
    problems: ProblemSink,
    stalls: ProblemSink,
    messages: &'a Sender<Message>,
    workers: HashMap<String, Arc<WorkerThread>>,
    components: Vec<Arc<dyn Component>>,
}

impl Maker<'_> {
    /// The thread of this name, made when first asked for.
    fn worker(&mut self, name: &str) -> Result<Arc<WorkerThread>, BuildError> {
        if let Some(worker) = self.workers.get(name) {
            return Ok(worker.clone());
        }
        let messages = Mutex::new(self.messages.clone());
        let thread = name.to_string();
        let worker = WorkerThread::spawn(name, move || notify(&messages, Notice::Defect(thread)));
        let worker = Arc::new(host("could not start a device's thread", worker)?);
        self.workers.insert(name.into(), worker.clone());
        Ok(worker)
    }

    /// Puts a virtio device in a slot.
    fn virtio<D: Device>(&mut self, slot: u8, name: &str, device: D) -> Result<(), BuildError> {
        self.virtio_with(slot, name, device, Layout::PLAIN, None)
    }

    /// The same, with its registers elsewhere and a second personality.
    fn virtio_with<D: Device>(
        &mut self,
        slot: u8,
        name: &str,
        device: D,
        layout: Layout,
        face: Option<Arc<dyn Face>>,
    ) -> Result<(), BuildError> {
        let executor: Arc<dyn Executor> = self.worker(match D::INFO.role {
            Role::Io => "io",
            Role::Gpu => "gpu",
            Role::Disk | Role::Net => name,
        })?;
        let parts = TransportParts {
            name: name.into(),
            memory: self.memory.clone(),
            executor,
            msi: self.kvm.clone(),
            line: self.pirq.line(slot, 0),
            doorbells: self.kvm.clone(),
            problems: self.problems.clone(),
            stalls: self.stalls.clone(),
            layout,
            face,
        };
        let function = host("could not create a device", VirtioPci::new(device, parts))?;
        self.pci(PciAddress::new(slot, 0), function);
        Ok(())
    }

    /// Puts an NVMe controller with this disk in a slot, a queue pair for each CPU, on a thread of its own.
    fn nvme(&mut self, slot: u8, name: &str, disk: Box<dyn Disk>, cpus: u32) -> Result<(), BuildError> {
        let parts = NvmeParts {
            name: name.into(),
            serial: format!("orangery-{name}"),
            queues: u16::try_from(cpus).unwrap_or(nvme::MAX_QUEUES),
            memory: self.memory.clone(),
            executor: self.worker(name)?,
            msi: self.kvm.clone(),
            line: self.pirq.line(slot, 0),
            doorbells: self.kvm.clone(),
            problems: self.problems.clone(),
            stalls: self.stalls.clone(),
        };
        let function = host("could not create an NVMe controller", Nvme::new(parts, disk))?;
        self.pci(PciAddress::new(slot, 0), function);
        Ok(())
    }

    /// The TPM, on a thread of its own: it is slow.
    fn tpm(&mut self, backend: Box<dyn TpmBackend>, buses: &Buses) -> Result<(), BuildError> {
        let device = Arc::new(TpmCrb::new(backend, self.worker("tpm")?, self.problems.clone()));
        let free = buses.memory.insert(tpm_crb::ADDRESS, tpm_crb::LEN, device.clone());
        debug_assert!(free);
        self.components.push(device);
        Ok(())
    }

    /// The SATA controller with these on its ports, on a thread of its own.
    fn sata(&mut self, drives: Vec<Drive>) -> Result<Arc<Ahci>, BuildError> {
        let messages = Mutex::new(self.messages.clone());
        let parts = AhciParts {
            name: "sata".into(),
            memory: self.memory.clone(),
            executor: self.worker("sata")?,
            msi: self.kvm.clone(),
            line: self.pirq.line(slot::CHIPSET, 0),
            problems: self.problems.clone(),
            stalls: self.stalls.clone(),
            ejected: Arc::new(move |drive| notify(&messages, Notice::Ejected { drive })),
        };
        let ahci = host("could not create the SATA controller", Ahci::new(parts, drives))?;
        self.pci(PciAddress::new(slot::CHIPSET, 2), ahci.clone());
        Ok(ahci)
    }

    fn pci<F: PciDevice + Component + 'static>(&mut self, address: PciAddress, function: Arc<F>) {
        self.root.add(address, function.clone());
        self.components.push(function);
    }
}

/// The CD-ROM drives: the first ports of the SATA controller, so that a drive's number is its port's.
fn cd_drives(config: &VmConfig) -> Result<Vec<Drive>, BuildError> {
    let drives = config.cdroms.iter().enumerate().map(|(drive, cdrom)| {
        let medium = cdrom.path.as_ref().map(|path| Medium::open(path)).transpose();
        medium.map(Drive::Cd).map_err(|source| BuildError::Host {
            what: format!("could not put a medium in CD-ROM drive {drive}"),
            source: source.into(),
        })
    });
    drives.collect()
}

/// What firmware tries, in order, by the names of OpenFirmware paths that SeaBIOS and OVMF know: the media in CD-ROM
/// drives, then the disks.
fn boot_order(config: &VmConfig) -> Vec<String> {
    let on_port = |port: usize| format!("/pci@i0cf8/pci8086,2922@{:x},2/drive@{port}/disk@0", slot::CHIPSET);
    let media = config.cdroms.iter().enumerate().filter(|(_, cdrom)| cdrom.path.is_some());
    let cdroms = media.map(|(port, _)| on_port(port));
    let mut sata_ports = config.cdroms.len()..;
    let disks = config.disks.iter().enumerate().filter_map(|(index, disk)| match disk.bus {
        DiskBus::Virtio => Some(format!("/pci@i0cf8/scsi@{:x}/disk@0,0", usize::from(slot::DISKS) + index)),
        DiskBus::Sata => sata_ports.next().map(on_port),
        // Firmware takes these ids for any NVMe controller's.
        DiskBus::Nvme => Some(format!("/pci@i0cf8/pci8086,5845@{:x}/namespace@1,0", usize::from(slot::DISKS) + index)),
    });
    cdroms.chain(disks).collect()
}

/// Puts CPU 0 where a kernel starts.
pub(super) fn enter(cpu: &KvmCpu, entry: Entry) -> Result<(), KvmError> {
    cpu.set_up_without_firmware()?;
    match entry {
        Entry::Long(to) => cpu.enter_long_mode(to),
        Entry::Protected(to) => cpu.enter_protected_mode(to),
    }
}
