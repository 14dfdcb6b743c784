//! virtio over PCI (virtio 1.2 §4.1): the registers through which a driver finds, configures, starts and resets a
//! device. Modern devices only.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ConfigSpace as DeviceConfig, Device, Fault};
use super::feature;
use super::queue::{Queue, QueueState};
use super::runner::Runner;
use crate::base::{Component, Executor, GuestMemory, SavedState, Section, StateError, TaskId};
use crate::hw::{Action, Doorbells, IrqLine, MsiSink, ProblemSink};
use crate::pci::{BarKind, ConfigSpace, ConfigState, Identity, Msix, MsixState, PciDevice, cap};

const VENDOR: u16 = 0x1af4;
/// Subsystem of all functions: guests' driver packages and firmware match it.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// "No vector" in the vector registers (virtio 1.2 §4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// Device status bits (virtio 1.2 §2.1).
mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 0x40;
}

/// ISR status bits (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Where in which BAR the registers are.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The BAR, 64 KiB.
    pub bar: u8,
    /// Common configuration, 0x38 bytes.
    pub common: u32,
    /// ISR status, 4 bytes.
    pub isr: u32,
    /// Device configuration, up to 4 KiB.
    pub device: u32,
    /// Notifications, 4 bytes a queue.
    pub notify: u32,
    /// MSI-X table.
    pub table: u32,
    /// MSI-X pending bits.
    pub pba: u32,
}

impl Layout {
    /// A function that is nothing but virtio.
    pub const PLAIN: Layout =
        Layout { bar: 0, common: 0, isr: 0x1000, device: 0x2000, notify: 0x3000, table: 0x8000, pba: 0xc000 };
    /// The VGA-class graphics function: VGA's own registers are below 0x1000 of the same BAR.
    pub const VGA: Layout =
        Layout { bar: 2, common: 0x1000, isr: 0x1800, device: 0x2000, notify: 0x3000, table: 0x8000, pba: 0xc000 };
}

const BAR_SIZE: u32 = 0x1_0000;
const COMMON_LEN: u64 = 0x38;
const ISR_LEN: u64 = 4;
const DEVICE_LEN: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// A second personality of the function (VGA), beside the virtio registers.
pub trait Face: Send + Sync {
    /// Adds its BARs.
    fn describe(&self, config: &mut ConfigSpace);
    /// Reads from a BAR where virtio has nothing.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);
    /// Writes to a BAR where virtio has nothing.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]);
    /// See [`PciDevice::bar_moved`].
    fn bar_moved(&self, bar: usize, address: Option<u64>);
    /// Back to power-on.
    fn reset(&self);
    /// Its state, encoded.
    fn save(&self) -> Result<Section, StateError>;
    /// Takes over a state.
    fn restore(&self, section: &Section) -> Result<(), StateError>;
}

/// What the machine gives a transport.
pub struct TransportParts {
    /// A name that is unique in the machine, for problems and checkpoints.
    pub name: String,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The thread that runs the device.
    pub executor: Arc<dyn Executor>,
    /// Where MSI-X messages go.
    pub msi: Arc<dyn MsiSink>,
    /// INTA#.
    pub line: Arc<dyn IrqLine>,
    /// Doorbells without a vCPU exit.
    pub doorbells: Arc<dyn Doorbells>,
    /// Who is told of the guest's and the host's faults.
    pub problems: ProblemSink,
    /// Who pauses the machine when the device can't go on until the host is mended.
    pub stalls: ProblemSink,
    /// Where the registers are.
    pub layout: Layout,
    /// The second personality, if any.
    pub face: Option<Arc<dyn Face>>,
}

/// Where the device is now.
enum Place<D> {
    /// Here; with the queues' progress where the machine is paused.
    Home(D, Vec<QueueState>),
    /// On its thread.
    Running(TaskId),
    /// On its thread, about to come home; `reset` when it does.
    Stopping { reset: bool },
    /// Never: while it changes hands.
    Moving,
}

/// What transport and runner share.
pub(super) struct Shared<D: Device> {
    name: String,
    pub(super) memory: GuestMemory,
    pub(super) bells: Vec<EventFd>,
    msix: Msix,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    status: AtomicU8,
    intx_disabled: AtomicBool,
    line: Arc<dyn IrqLine>,
    problems: ProblemSink,
    stalls: ProblemSink,
    config: Arc<dyn DeviceConfig>,
    place: Mutex<Place<D>>,
    common: Mutex<Common>,
}

impl<D: Device> Shared<D> {
    /// Has the runner look at a queue.
    pub(super) fn ring(&self, queue: usize) {
        if let Some(bell) = self.bells.get(queue) {
            // A counter that is full still wakes the runner.
            let _ = bell.write(1);
        }
    }

    pub(super) fn queue_interrupt(&self, queue: usize) {
        let vector = self.queue_vectors.get(queue).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
        self.interrupt(vector, ISR_QUEUE);
    }

    pub(super) fn config_interrupt(&self) {
        self.interrupt(self.config_vector.load(Ordering::Acquire), ISR_CONFIG);
    }

    fn interrupt(&self, vector: u16, cause: u8) {
        if self.msix.is_enabled() {
            if vector != NO_VECTOR {
                self.msix.trigger(vector);
            }
        } else {
            self.isr.fetch_or(cause, Ordering::AcqRel);
            self.drive_line();
        }
    }

    fn drive_line(&self) {
        let asserted = self.isr.load(Ordering::Acquire) != 0;
        self.line.set(asserted && !self.intx_disabled.load(Ordering::Acquire) && !self.msix.is_enabled());
    }

    pub(super) fn problem(&self, message: String) {
        (self.problems)(&self.name, message);
    }

    pub(super) fn stall(&self, message: String) {
        (self.stalls)(&self.name, message);
    }

    /// The guest broke the protocol: the device stops until the driver resets it (virtio 1.2 §2.1.2).
    pub(super) fn needs_reset(&self, fault: &Fault) {
        self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        self.config_interrupt();
        self.problem(format!("the guest's driver broke the protocol ({fault}); the device waits for its reset"));
    }

    /// The runner is done: the device comes home.
    pub(super) fn stopped(&self, mut device: D, queues: Vec<QueueState>) {
        let mut place = lock(&self.place);
        if matches!(*place, Place::Stopping { reset: true }) {
            device.reset();
            self.forget();
            *place = Place::Home(device, Vec::new());
            // Last: it tells the driver that the reset is over.
            self.status.store(0, Ordering::Release);
        } else {
            *place = Place::Home(device, queues);
        }
    }

    /// All registers but the status as after power-on.
    fn forget(&self) {
        lock(&self.common).reset();
        self.config.reset();
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
        self.drive_line();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The driver's writes to the common configuration.
struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueState>,
    max_sizes: Vec<u16>,
}

impl Common {
    fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues = self.max_sizes.iter().map(|&size| QueueState { size, ..QueueState::default() }).collect();
    }
}

/// The fields of the common configuration (virtio 1.2 §4.1.4.3): offset and length.
const FIELDS: [(u64, u64); 16] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x12, 2),
    (0x14, 1),
    (0x15, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x1e, 2),
    (0x20, 8),
    (0x28, 8),
    (0x30, 8),
];

/// What a checkpoint keeps of a virtio function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pci: ConfigState,
    msix: MsixState,
    status: u8,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueState>,
    device: Section,
    face: Option<Section>,
}

impl SavedState for TransportState {
    const VERSION: u32 = 1;
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D: Device> {
    pci: Mutex<ConfigSpace>,
    shared: Arc<Shared<D>>,
    features: u64,
    layout: Layout,
    msix_capability: usize,
    pci_cfg_capability: usize,
    executor: Arc<dyn Executor>,
    doorbells: Arc<dyn Doorbells>,
    registered: Mutex<Option<u64>>,
    face: Option<Arc<dyn Face>>,
}

impl<D: Device> VirtioPci<D> {
    /// Puts a device behind its registers. Fails when the host is out of file descriptors.
    pub fn new(device: D, parts: TransportParts) -> io::Result<Arc<VirtioPci<D>>> {
        let TransportParts { name, memory, executor, msi, line, doorbells, problems, stalls, layout, face } = parts;
        let max_sizes = device.queues().to_vec();
        let bells = max_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Vec<_>>>()?;
        let identity = Identity {
            vendor: VENDOR,
            device: 0x1040 + D::INFO.id,
            revision: 1,
            class: D::INFO.class,
            subsystem: SUBSYSTEM,
        };
        let mut pci = ConfigSpace::new(identity);
        pci.use_intx();
        pci.add_bar(usize::from(layout.bar), BarKind::Memory, BAR_SIZE);
        if let Some(face) = &face {
            face.describe(&mut pci);
        }
        let msix = Msix::new(max_sizes.len() as u16 + 1, msi);
        let msix_capability = msix.add_capability(&mut pci, layout.bar, layout.table, layout.pba);
        let notify_len = NOTIFY_MULTIPLIER * max_sizes.len() as u32;
        let mut virtio_cap = |kind: u8, offset: u32, len: u32, extra: &[u8], writable: &[u8]| {
            // struct virtio_pci_cap (virtio 1.2 §4.1.4) after the two bytes that every capability has.
            let mut body = vec![16 + extra.len() as u8, kind, layout.bar, 0, 0, 0];
            body.extend(offset.to_le_bytes());
            body.extend(len.to_le_bytes());
            body.extend(extra);
            pci.add_capability(cap::VENDOR, &body, writable)
        };
        virtio_cap(1, layout.common, COMMON_LEN as u32, &[], &[]);
        virtio_cap(3, layout.isr, ISR_LEN as u32, &[], &[]);
        virtio_cap(4, layout.device, DEVICE_LEN as u32, &[], &[]);
        virtio_cap(2, layout.notify, notify_len, &NOTIFY_MULTIPLIER.to_le_bytes(), &[]);
        let window = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let pci_cfg_capability = virtio_cap(5, 0, 0, &[0; 4], &window);

        let mut common = Common {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: Vec::new(),
            max_sizes,
        };
        common.reset();
        let features = device.features() | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        let shared = Arc::new(Shared {
            name,
            memory,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: bells.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            bells,
            msix,
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            intx_disabled: AtomicBool::new(false),
            line,
            problems,
            stalls,
            config: device.config(),
            place: Mutex::new(Place::Home(device, Vec::new())),
            common: Mutex::new(common),
        });
        Ok(Arc::new(VirtioPci {
            pci: Mutex::new(pci),
            shared,
            features,
            layout,
            msix_capability,
            pci_cfg_capability,
            executor,
            doorbells,
            registered: Mutex::new(None),
            face,
        }))
    }

    fn status(&self) -> u8 {
        self.shared.status.load(Ordering::Acquire)
    }

    fn common_bytes(&self) -> [u8; COMMON_LEN as usize] {
        let common = lock(&self.shared.common);
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let selected = usize::from(common.queue_select);
        let absent = QueueState::default();
        let queue = common.queues.get(selected).unwrap_or(&absent);
        let vector = self.shared.queue_vectors.get(selected).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
        let mut bytes = [0; COMMON_LEN as usize];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0x00, &common.device_feature_select.to_le_bytes());
        put(0x04, &half(self.features, common.device_feature_select).to_le_bytes());
        put(0x08, &common.driver_feature_select.to_le_bytes());
        put(0x0c, &half(common.driver_features, common.driver_feature_select).to_le_bytes());
        put(0x10, &self.shared.config_vector.load(Ordering::Acquire).to_le_bytes());
        put(0x12, &(common.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status(), self.shared.config.generation()]);
        put(0x16, &common.queue_select.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &vector.to_le_bytes());
        put(0x1c, &u16::from(queue.ready).to_le_bytes());
        put(0x1e, &common.queue_select.to_le_bytes());
        put(0x20, &queue.desc.to_le_bytes());
        put(0x28, &queue.avail.to_le_bytes());
        put(0x30, &queue.used.to_le_bytes());
        bytes
    }

    /// Writes the fields that an access covers, in whole or in part.
    fn write_common(&self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for (start, len) in FIELDS.into_iter().filter(|&(start, len)| start < end && offset < start + len) {
            let mut value = [0; 8];
            let now = self.common_bytes();
            value[..len as usize].copy_from_slice(&now[start as usize..(start + len) as usize]);
            for (i, byte) in value[..len as usize].iter_mut().enumerate() {
                let at = start + i as u64;
                if (offset..end).contains(&at) {
                    *byte = data[(at - offset) as usize];
                }
            }
            self.write_field(start, u64::from_le_bytes(value));
        }
    }

    fn write_field(&self, field: u64, value: u64) {
        let now = self.status();
        if field == 0x14 {
            return self.write_status(value as u8);
        }
        let mut guard = lock(&self.shared.common);
        let common = &mut *guard;
        let selected = usize::from(common.queue_select);
        let started = now & status::DRIVER_OK != 0;
        match field {
            0x00 => common.device_feature_select = value as u32,
            0x08 => common.driver_feature_select = value as u32,
            0x0c if now & status::FEATURES_OK == 0 => {
                let (keep, shift) = match common.driver_feature_select {
                    0 => (!0 << 32, 0),
                    1 => (u64::from(u32::MAX), 32),
                    _ => return,
                };
                common.driver_features = (common.driver_features & keep) | value << shift;
            }
            0x10 => self.shared.config_vector.store(self.known_vector(value as u16), Ordering::Release),
            0x16 => common.queue_select = value as u16,
            0x1a => {
                if let Some(vector) = self.shared.queue_vectors.get(selected) {
                    vector.store(self.known_vector(value as u16), Ordering::Release);
                }
            }
            _ => {
                let max = common.max_sizes.get(selected).copied().unwrap_or(0);
                let Some(queue) = common.queues.get_mut(selected).filter(|q| !q.ready && !started) else { return };
                match field {
                    0x18 if (value as u16).is_power_of_two() && value as u16 <= max => queue.size = value as u16,
                    0x1c => queue.ready = value == 1,
                    0x20 => queue.desc = value,
                    0x28 => queue.avail = value,
                    0x30 => queue.used = value,
                    _ => {}
                }
            }
        }
    }

    fn known_vector(&self, vector: u16) -> u16 {
        if vector < self.shared.msix.vectors() { vector } else { NO_VECTOR }
    }

    fn write_status(&self, value: u8) {
        let now = self.status();
        if value == 0 {
            return self.request_reset();
        }
        if matches!(*lock(&self.shared.place), Place::Stopping { .. }) {
            // A reset is under way; a driver that did not wait for it is not heard.
            return;
        }
        // Bits are only ever set; a reset clears them.
        let mut new = now | value & !status::NEEDS_RESET;
        if new & !now & status::FEATURES_OK != 0 {
            let accepted = lock(&self.shared.common).driver_features;
            if accepted & !self.features != 0 || accepted & feature::VERSION_1 == 0 {
                new &= !status::FEATURES_OK;
            }
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.shared.status.fetch_or(new, Ordering::AcqRel);
        if new & !now & status::DRIVER_OK != 0 {
            let queues = lock(&self.shared.common).queues.clone();
            self.launch(queues);
        }
    }

    /// Hands the device to its thread.
    fn launch(&self, states: Vec<QueueState>) {
        let features = lock(&self.shared.common).driver_features;
        let memory = &self.shared.memory;
        let queues: Result<Vec<_>, Fault> = states.iter().map(|s| Queue::new(s.clone(), features, memory)).collect();
        match queues {
            Err(fault) => self.shared.needs_reset(&fault),
            Ok(queues) => {
                let mut place = lock(&self.shared.place);
                match std::mem::replace(&mut *place, Place::Moving) {
                    Place::Home(device, _) => {
                        let runner = Runner::new(device, queues, features, self.shared.clone());
                        *place = Place::Running(self.executor.submit(Box::new(runner)));
                    }
                    other => *place = other,
                }
            }
        }
    }

    fn request_reset(&self) {
        let mut place = lock(&self.shared.place);
        match &mut *place {
            Place::Running(task) => {
                let task = *task;
                *place = Place::Stopping { reset: true };
                self.executor.stop(task);
            }
            Place::Stopping { reset } => *reset = true,
            Place::Home(device, queues) => {
                device.reset();
                queues.clear();
                self.shared.forget();
                self.shared.status.store(0, Ordering::Release);
            }
            Place::Moving => {}
        }
    }

    /// The virtio register that an offset of the BAR names.
    fn region(&self, bar: usize, offset: u64) -> Option<(Register, u64)> {
        let Layout { bar: own, common, isr, device, notify, table, pba } = self.layout;
        let notify_len = u64::from(NOTIFY_MULTIPLIER) * self.shared.bells.len() as u64;
        let table_len = 16 * u64::from(self.shared.msix.vectors());
        let regions = [
            (common, COMMON_LEN, Register::Common),
            (isr, ISR_LEN, Register::Isr),
            (device, DEVICE_LEN, Register::Device),
            (notify, notify_len, Register::Notify),
            (table, table_len, Register::Table),
            (pba, 8 * table_len.div_ceil(16).div_ceil(64), Register::Pba),
        ];
        let found = regions.into_iter().find(|&(at, len, _)| (u64::from(at)..u64::from(at) + len).contains(&offset));
        found.filter(|_| bar == usize::from(own)).map(|(at, _, register)| (register, offset - u64::from(at)))
    }

    /// The BAR access that the PCI_CFG capability stands for (virtio 1.2 §4.1.4.9), if `offset` is its data register.
    fn window_access(&self, offset: usize, len: usize) -> Option<(usize, u64)> {
        let data = self.pci_cfg_capability + 16;
        if !(data..data + 4).contains(&offset) {
            return None;
        }
        let pci = lock(&self.pci);
        let bar = pci.dword(self.pci_cfg_capability + 4) as u8;
        let (at, size) = (pci.dword(self.pci_cfg_capability + 8), pci.dword(self.pci_cfg_capability + 12));
        let fits = size as usize == len && matches!(len, 1 | 2 | 4) && at % size == 0;
        let inside = pci.bar(usize::from(bar)).is_some_and(|(_, s)| u64::from(at) + len as u64 <= u64::from(s));
        (fits && inside).then_some((usize::from(bar), u64::from(at)))
    }

    fn msix_control(&self) -> u16 {
        (lock(&self.pci).dword(self.msix_capability) >> 16) as u16
    }

    fn config_changed(&self) {
        let disabled = lock(&self.pci).intx_disabled();
        self.shared.intx_disabled.store(disabled, Ordering::Release);
        self.shared.msix.set_control(self.msix_control());
        self.shared.drive_line();
    }
}

#[derive(Clone, Copy)]
enum Register {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pba,
}

impl<D: Device> PciDevice for VirtioPci<D> {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.pci
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        if let Some((bar, at)) = self.window_access(offset, data.len()) {
            data.fill(0xff);
            return self.read_bar(bar, at, data);
        }
        let interrupt = self.shared.isr.load(Ordering::Acquire) != 0;
        let mut pci = lock(&self.pci);
        pci.set_interrupt_status(interrupt);
        pci.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Option<Action> {
        if let Some((bar, at)) = self.window_access(offset, data.len()) {
            return self.write_bar(bar, at, data);
        }
        lock(&self.pci).write(offset, data);
        self.config_changed();
        None
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match self.region(bar, offset) {
            Some((Register::Common, at)) => {
                let bytes = self.common_bytes();
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = bytes.get(at as usize + i).copied().unwrap_or(0);
                }
            }
            Some((Register::Isr, at)) => {
                data.fill(0);
                if at == 0 {
                    data[0] = self.shared.isr.swap(0, Ordering::AcqRel);
                    self.shared.drive_line();
                }
            }
            Some((Register::Device, at)) => self.shared.config.read(at, data),
            Some((Register::Notify, _)) => data.fill(0),
            Some((Register::Table, at)) => self.shared.msix.read_table(at, data),
            Some((Register::Pba, at)) => self.shared.msix.read_pba(at, data),
            None => {
                if let Some(face) = &self.face {
                    face.read_bar(bar, offset, data);
                }
            }
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Option<Action> {
        match self.region(bar, offset) {
            Some((Register::Common, at)) => self.write_common(at, data),
            Some((Register::Isr | Register::Pba, _)) => {}
            Some((Register::Device, at)) => self.shared.config.write(at, data),
            Some((Register::Notify, at)) => self.shared.ring((at / u64::from(NOTIFY_MULTIPLIER)) as usize),
            Some((Register::Table, at)) => self.shared.msix.write_table(at, data),
            None => {
                if let Some(face) = &self.face {
                    face.write_bar(bar, offset, data);
                }
            }
        }
        None
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        if let Some(face) = &self.face {
            face.bar_moved(bar, address);
        }
        if bar != usize::from(self.layout.bar) {
            return;
        }
        let mut registered = lock(&self.registered);
        let address_of = |base: u64, queue: usize| {
            base + u64::from(self.layout.notify) + u64::from(NOTIFY_MULTIPLIER) * queue as u64
        };
        if let Some(base) = registered.take() {
            for (queue, bell) in self.shared.bells.iter().enumerate() {
                let _ = self.doorbells.unregister(address_of(base, queue), bell);
            }
        }
        if let Some(base) = address {
            for (queue, bell) in self.shared.bells.iter().enumerate() {
                // Where the host has no room for another doorbell, the write exits to the vCPU and rings there.
                let _ = self.doorbells.register(address_of(base, queue), bell);
            }
            *registered = Some(base);
        }
    }
}

impl<D: Device> Component for VirtioPci<D> {
    fn name(&self) -> String {
        self.shared.name.clone()
    }

    fn pause(&self) {
        let mut place = lock(&self.shared.place);
        if let Place::Running(task) = *place {
            *place = Place::Stopping { reset: false };
            self.executor.stop(task);
        }
        drop(place);
        self.executor.flush();
    }

    fn resume(&self) {
        let states = match &*lock(&self.shared.place) {
            Place::Home(_, states) if !states.is_empty() => states.clone(),
            _ => return,
        };
        let live = self.status() & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK;
        if live {
            self.launch(states);
        }
    }

    fn reset(&self) {
        // The face first: what the device gives back to it must not be of before the reset.
        if let Some(face) = &self.face {
            face.reset();
        }
        self.request_reset();
        self.shared.msix.reset();
        lock(&self.pci).reset();
        self.config_changed();
    }

    fn save(&self) -> Result<Section, StateError> {
        let (device, states) = match &*lock(&self.shared.place) {
            Place::Home(device, states) => (Section::encode(D::INFO.name, &device.save())?, states.clone()),
            _ => return Err(StateError::invalid(&self.shared.name, "it is running")),
        };
        let common = lock(&self.shared.common);
        let queues = if states.is_empty() { common.queues.clone() } else { states };
        let state = TransportState {
            pci: lock(&self.pci).save(),
            msix: self.shared.msix.save(),
            status: self.status(),
            isr: self.shared.isr.load(Ordering::Acquire),
            config_vector: self.shared.config_vector.load(Ordering::Acquire),
            queue_vectors: self.shared.queue_vectors.iter().map(|v| v.load(Ordering::Acquire)).collect(),
            device_feature_select: common.device_feature_select,
            driver_feature_select: common.driver_feature_select,
            driver_features: common.driver_features,
            queue_select: common.queue_select,
            queues,
            device,
            face: self.face.as_ref().map(|f| f.save()).transpose()?,
        };
        Section::encode(&self.shared.name, &state)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let TransportState {
            pci,
            msix,
            status,
            isr,
            config_vector,
            queue_vectors,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            device,
            face,
        } = section.decode()?;
        let name = &self.shared.name;
        let count = self.shared.bells.len();
        if queues.len() != count || queue_vectors.len() != count || face.is_some() != self.face.is_some() {
            return Err(StateError::invalid(name, "it is of another kind of device"));
        }
        // What a driver has only asked for it may have asked for in vain.
        if status & status::FEATURES_OK != 0 && driver_features & !self.features != 0 {
            return Err(StateError::invalid(name, "its driver uses features that this device lacks"));
        }
        lock(&self.pci).restore(&pci)?;
        self.shared.msix.restore(&msix, self.msix_control())?;
        {
            let mut common = lock(&self.shared.common);
            common.device_feature_select = device_feature_select;
            common.driver_feature_select = driver_feature_select;
            common.driver_features = driver_features;
            common.queue_select = queue_select;
            common.queues.clone_from(&queues);
        }
        self.shared.config_vector.store(self.known_vector(config_vector), Ordering::Release);
        for (slot, vector) in self.shared.queue_vectors.iter().zip(queue_vectors) {
            slot.store(self.known_vector(vector), Ordering::Release);
        }
        self.shared.isr.store(isr, Ordering::Release);
        self.shared.status.store(status, Ordering::Release);
        match &mut *lock(&self.shared.place) {
            Place::Home(home, states) => {
                home.restore(device.decode()?)?;
                *states = queues;
            }
            _ => return Err(StateError::invalid(name, "it is running")),
        }
        if let (Some(own), Some(section)) = (&self.face, &face) {
            own.restore(section)?;
        }
        self.config_changed();
        Ok(())
    }
}

impl<D: Device> Drop for VirtioPci<D> {
    fn drop(&mut self) {
        if let Place::Running(task) = *lock(&self.shared.place) {
            self.executor.stop(task);
        }
    }
}
