//! The registers of the host bus adapter and its ports (AHCI 1.3.1 §3), and what writing them does at once.

use serde::{Deserialize, Serialize};

/// How many ports there are.
pub const PORTS: usize = 6;
/// Command slots of a port.
pub(super) const SLOTS: u32 = 32;

/// S64A, SNCQ, SCLO, SAM, the speed of generation 3, 32 slots, six ports.
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | (SLOTS - 1) << 8 | (PORTS as u32 - 1);
const VERSION: u32 = 0x0001_0301;

const GHC_RESET: u32 = 1;
const GHC_INTERRUPTS: u32 = 1 << 1;
const GHC_AHCI: u32 = 1 << 31;

/// PxCMD (§3.3.7).
pub(super) mod cmd {
    pub const START: u32 = 1;
    pub const SPUN_UP: u32 = 1 << 1;
    pub const POWERED: u32 = 1 << 2;
    pub const LIST_OVERRIDE: u32 = 1 << 3;
    pub const FIS_ENABLE: u32 = 1 << 4;
    pub const SLOT_SHIFT: u32 = 8;
    pub const SLOT_MASK: u32 = 0x1f << SLOT_SHIFT;
    pub const FIS_RUNNING: u32 = 1 << 14;
    pub const LIST_RUNNING: u32 = 1 << 15;
    /// What software may set and read back: FRE, ATAPI, DLAE, ALPE, ASP; ST is seen to apart.
    pub const PLAIN: u32 = FIS_ENABLE | 0xf << 24;
}

/// PxIS (§3.3.5).
pub(super) mod is {
    pub const D2H: u32 = 1;
    pub const PIO_SETUP: u32 = 1 << 1;
    pub const DEVICE_BITS: u32 = 1 << 3;
    pub const HOST_BUS_FATAL: u32 = 1 << 29;
    pub const TASK_FILE_ERROR: u32 = 1 << 30;
    /// All that can be enabled.
    pub const ALL: u32 = 0xfdc0_00ff;
}

/// ATA status bits.
pub(super) mod status {
    pub const ERROR: u8 = 1;
    pub const DATA_REQUEST: u8 = 1 << 3;
    pub const SEEK_COMPLETE: u8 = 1 << 4;
    pub const READY: u8 = 1 << 6;
    pub const BUSY: u8 = 1 << 7;
}

/// The task file of a device after its reset: ready, self test passed.
const READY_AFTER_RESET: u32 = 0x0150;
/// The task file where there is no device.
const NO_DEVICE: u32 = 0x7f;
/// PxSSTS: a device, communication established at generation 3, interface active.
const LINK_UP: u32 = 0x133;

const SCTL_DET: u32 = 0xf;
const DET_OFF: u32 = 4;

/// What a register write asks of the rest of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Effect {
    /// There may be commands to run.
    pub ring: bool,
    /// Ports that sent the first FIS of their device; bits.
    pub signature: u32,
    /// The guest may have to be interrupted again.
    pub interrupt: bool,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// PxSIG of its device; `None`: no device.
    device: Option<u32>,
    /// Guest address of the command list.
    pub list: u64,
    /// Guest address of the received FISes.
    pub fises: u64,
    interrupt_status: u32,
    interrupt_enable: u32,
    command: u32,
    pub task_file: u32,
    control: u32,
    active: u32,
    issued: u32,
    /// It stopped at an error until software stops and starts it.
    halted: bool,
    /// Software's reset (by FIS) is half done.
    pub soft_reset: bool,
    /// Commands that run. Whatever happens to the registers, their memory is in use until they are over.
    running: u32,
    /// Those among them that are queued in the device and whose results are wanted, by tag.
    queued: u32,
    /// Queued commands that the device took and put back, by tag: they are to be done again.
    returned: u32,
    /// Something was put back because the host's disk is full: nothing is taken until the machine was paused and goes on.
    stalled: bool,
    /// The device comes out of its reset once nothing runs any more.
    resetting: bool,
    /// Counts what makes running commands' results unwanted.
    pub epoch: u64,
}

/// A command that is to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Its slot.
    pub slot: u32,
    /// Its result is wanted as long as the port's is this.
    pub epoch: u64,
    /// Guest address of the command list.
    pub list: u64,
    /// Tags that the device has queued already.
    pub queued: u32,
}

/// What a checkpoint keeps of a port. Nothing runs then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    list: u64,
    fises: u64,
    interrupt_status: u32,
    interrupt_enable: u32,
    command: u32,
    task_file: u32,
    control: u32,
    active: u32,
    issued: u32,
    halted: bool,
    soft_reset: bool,
    #[serde(default)]
    returned: u32,
}

impl Port {
    fn new(device: Option<u32>) -> Port {
        let mut port = Port {
            device,
            list: 0,
            fises: 0,
            interrupt_status: 0,
            interrupt_enable: 0,
            command: cmd::SPUN_UP | cmd::POWERED,
            task_file: 0,
            control: 0,
            active: 0,
            issued: 0,
            halted: false,
            soft_reset: false,
            running: 0,
            queued: 0,
            returned: 0,
            stalled: false,
            resetting: false,
            epoch: 0,
        };
        port.device_ready();
        port
    }

    /// The device is as after power-on.
    fn device_ready(&mut self) {
        self.soft_reset = false;
        self.task_file = if self.device.is_some() { READY_AFTER_RESET } else { NO_DEVICE };
    }

    /// The device's own reset, asked for by a FIS: it forgets its queue.
    pub fn reset_device(&mut self) {
        self.abandon();
        self.device_ready();
    }

    /// Back to power-on, whatever runs.
    fn reset(&mut self) {
        let fresh = Port { running: self.running, epoch: self.epoch + 1, ..Port::new(self.device) };
        *self = fresh;
    }

    /// PxSIG.
    pub fn signature(&self) -> u32 {
        self.device.unwrap_or(u32::MAX)
    }

    fn link(&self) -> u32 {
        match (self.device, self.control & SCTL_DET) {
            (_, DET_OFF) => 4,
            (Some(_), 0) => LINK_UP,
            _ => 0,
        }
    }

    fn read(&self, register: u32) -> u32 {
        match register {
            0x00 => self.list as u32,
            0x04 => (self.list >> 32) as u32,
            0x08 => self.fises as u32,
            0x0c => (self.fises >> 32) as u32,
            0x10 => self.interrupt_status,
            0x14 => self.interrupt_enable,
            0x18 => {
                let fis_running = if self.command & cmd::FIS_ENABLE != 0 { cmd::FIS_RUNNING } else { 0 };
                let list_running = self.running > 0 || self.command & cmd::START != 0;
                self.command | fis_running | if list_running { cmd::LIST_RUNNING } else { 0 }
            }
            0x20 => self.task_file,
            0x24 => self.signature(),
            0x28 => self.link(),
            0x2c => self.control,
            0x34 => self.active,
            0x38 => self.issued,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) -> Effect {
        let low = |old: u64, value: u32| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64, value: u32| old & 0xffff_ffff | u64::from(value) << 32;
        let mut effect = Effect::default();
        match register {
            0x00 => self.list = low(self.list, value & !0x3ff),
            0x04 => self.list = high(self.list, value),
            0x08 => self.fises = low(self.fises, value & !0xff),
            0x0c => self.fises = high(self.fises, value),
            0x10 => self.interrupt_status &= !value,
            0x14 => {
                self.interrupt_enable = value & is::ALL;
                effect.interrupt = self.interrupts();
            }
            0x18 => effect = self.write_command(value),
            0x2c => {
                let (was, now) = (self.control & SCTL_DET, value & SCTL_DET);
                self.control = value & 0xfff;
                if was == 0 && now != 0 {
                    // COMRESET, or off: whatever the device does is over.
                    self.abandon();
                    self.resetting = false;
                    self.issued = 0;
                    self.active = 0;
                    self.halted = false;
                    if self.device.is_some() {
                        self.task_file = u32::from(status::BUSY);
                    }
                } else if was != 0 && now == 0 {
                    // A driver that sees the device ready takes its memory back.
                    self.resetting = self.running > 0;
                    if !self.resetting {
                        self.device_ready();
                        effect.signature = u32::from(self.device.is_some());
                    }
                }
            }
            0x34 if self.command & cmd::START != 0 => self.active |= value,
            0x38 if self.command & cmd::START != 0 => {
                self.issued |= value;
                effect.ring = true;
            }
            _ => {}
        }
        effect
    }

    fn write_command(&mut self, value: u32) -> Effect {
        let mut effect = Effect::default();
        let was = self.command;
        self.command = was & !cmd::PLAIN | value & cmd::PLAIN;
        if value & cmd::LIST_OVERRIDE != 0 && was & cmd::START == 0 && self.device.is_some() {
            self.task_file &= !u32::from(status::BUSY | status::DATA_REQUEST);
        }
        if value & cmd::FIS_ENABLE != 0 && was & cmd::FIS_ENABLE == 0 && self.device.is_some() {
            // The FIS that a device sends after its reset waits for room.
            effect.signature = 1;
        }
        if value & cmd::START != 0 && was & cmd::START == 0 {
            self.command |= cmd::START;
            self.halted = false;
            effect.ring = true;
        } else if value & cmd::START == 0 && was & cmd::START != 0 {
            self.command &= !(cmd::START | cmd::SLOT_MASK);
            self.abandon();
            self.issued = 0;
            self.active = 0;
            self.halted = false;
        }
        effect
    }

    /// The results of what runs are unwanted.
    fn abandon(&mut self) {
        self.epoch += 1;
        self.queued = 0;
        self.returned = 0;
    }

    /// The next command to run, if one may run now: beside queued ones, but not beside another or one that was
    /// abandoned. It counts as running from here on.
    pub fn take(&mut self) -> Option<Taken> {
        let free = self.running == self.queued.count_ones();
        let may = self.command & cmd::START != 0 && !self.halted && free && self.control & SCTL_DET == 0;
        let waiting = self.issued | self.returned;
        if !may || self.stalled || self.device.is_none() || waiting == 0 {
            return None;
        }
        // Slots take turns: the first issued one after the last that ran.
        let last = (self.command & cmd::SLOT_MASK) >> cmd::SLOT_SHIFT;
        let turned = waiting.rotate_right(last + 1);
        let slot = (turned.trailing_zeros() + last + 1) % SLOTS;
        self.command = self.command & !cmd::SLOT_MASK | slot << cmd::SLOT_SHIFT;
        self.returned &= !(1 << slot);
        self.running += 1;
        Some(Taken { slot, epoch: self.epoch, list: self.list, queued: self.queued })
    }

    /// The memory of so many commands is free again. True: that ended the device's reset.
    pub fn release(&mut self, commands: u32) -> bool {
        self.running = self.running.saturating_sub(commands);
        let over = self.running == 0 && std::mem::take(&mut self.resetting);
        if over {
            self.device_ready();
        }
        over
    }

    /// The device took a slot's command into its queue; the slot's tag stays active.
    pub fn enqueue(&mut self, slot: u32) {
        self.issued &= !(1 << slot);
        self.queued |= 1 << slot;
    }

    /// A slot's command is to be done again. For the driver it goes on all the while: its slot stays issued or, where it is
    /// a queued one, active.
    pub fn put_back(&mut self, slot: u32, queued: bool) {
        if queued {
            self.queued &= !(1 << slot);
            self.returned |= 1 << slot;
        }
    }

    /// Takes nothing more. True: it did until now.
    pub fn stall(&mut self) -> bool {
        !std::mem::replace(&mut self.stalled, true)
    }

    /// Queued commands are over, by tag.
    pub fn dequeue(&mut self, tags: u32) {
        self.queued &= !tags;
        self.active &= !tags;
    }

    /// A slot's command is over.
    pub fn retire(&mut self, slot: u32) {
        self.issued &= !(1 << slot);
        self.active &= !(1 << slot);
    }

    /// Stops at an error: the slot stays issued, a queued one active (§6.2.2), and the device forgets its queue.
    pub fn halt(&mut self) {
        self.halted = true;
        self.abandon();
    }

    /// Sets interrupt status bits; true: the guest wants to hear of them.
    pub fn raise(&mut self, bits: u32) -> bool {
        self.interrupt_status |= bits;
        self.interrupt_enable & bits != 0
    }

    fn interrupts(&self) -> bool {
        self.interrupt_status & self.interrupt_enable != 0
    }

    /// Whether received FISes are wanted in memory.
    pub fn receives(&self) -> bool {
        self.command & cmd::FIS_ENABLE != 0
    }

    fn save(&self) -> PortState {
        let Port {
            device: _,
            list,
            fises,
            interrupt_status,
            interrupt_enable,
            command,
            task_file,
            control,
            active,
            issued,
            halted,
            soft_reset,
            returned,
            running: _,
            queued: _,
            stalled: _,
            resetting: _,
            epoch: _,
        } = *self;
        PortState {
            list,
            fises,
            interrupt_status,
            interrupt_enable,
            command,
            task_file,
            control,
            active,
            issued,
            halted,
            soft_reset,
            returned,
        }
    }

    fn restore(&mut self, state: &PortState) {
        let PortState {
            list,
            fises,
            interrupt_status,
            interrupt_enable,
            command,
            task_file,
            control,
            active,
            issued,
            halted,
            soft_reset,
            returned,
        } = *state;
        *self = Port {
            device: self.device,
            list: list & !0x3ff,
            fises: fises & !0xff,
            interrupt_status,
            interrupt_enable: interrupt_enable & is::ALL,
            command: command & (cmd::PLAIN | cmd::START | cmd::SLOT_MASK) | cmd::SPUN_UP | cmd::POWERED,
            task_file,
            control: control & 0xfff,
            active,
            issued,
            halted,
            soft_reset,
            running: 0,
            queued: 0,
            returned,
            stalled: false,
            resetting: false,
            epoch: self.epoch + 1,
        };
    }
}

/// The whole adapter.
#[derive(Debug)]
pub(super) struct Hba {
    control: u32,
    interrupt_status: u32,
    pub ports: [Port; PORTS],
}

/// What a checkpoint keeps of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HbaState {
    control: u32,
    interrupt_status: u32,
    ports: Vec<PortState>,
}

impl Hba {
    /// With these devices' signatures.
    pub fn new(devices: [Option<u32>; PORTS]) -> Hba {
        Hba { control: GHC_AHCI, interrupt_status: 0, ports: devices.map(Port::new) }
    }

    /// Reads a register, `offset` a multiple of four.
    pub fn read(&self, offset: u32) -> u32 {
        match offset {
            0x00 => CAP,
            0x04 => self.control,
            0x08 => self.interrupt_status,
            // Ports without a device are not there: firmware would wait for each one's link.
            0x0c => (0..PORTS).filter(|&p| self.ports[p].device.is_some()).map(|p| 1 << p).sum(),
            0x10 => VERSION,
            0x100.. => self.ports.get((offset - 0x100) as usize / 0x80).map_or(0, |p| p.read(offset & 0x7f)),
            _ => 0,
        }
    }

    /// Writes a register, `offset` a multiple of four.
    pub fn write(&mut self, offset: u32, value: u32) -> Effect {
        let mut effect = Effect::default();
        match offset {
            0x04 if value & GHC_RESET != 0 => self.reset(),
            0x04 => {
                self.control = GHC_AHCI | self.control & GHC_RESET | value & GHC_INTERRUPTS;
                effect.interrupt = true;
            }
            0x08 => {
                self.interrupt_status &= !value;
                effect.interrupt = true;
            }
            0x100.. => {
                let index = (offset - 0x100) as usize / 0x80;
                if let Some(port) = self.ports.get_mut(index) {
                    effect = port.write(offset & 0x7f, value);
                    effect.signature <<= index;
                }
            }
            _ => {}
        }
        effect
    }

    /// Back to power-on, as far as nothing runs; the rest follows in [`Hba::settle`].
    pub fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
        self.interrupt_status = 0;
        self.control = GHC_AHCI | GHC_RESET;
        self.settle();
    }

    /// The machine was paused and goes on: what was put back is tried again.
    pub fn go_on(&mut self) {
        self.ports.iter_mut().for_each(|port| port.stalled = false);
    }

    /// Ends a reset once nothing runs any more.
    pub fn settle(&mut self) {
        if self.ports.iter().all(|p| p.running == 0) {
            self.control &= !GHC_RESET;
        }
    }

    /// Brings the interrupt status up to date. True: the guest is to be interrupted.
    pub fn interrupts(&mut self) -> bool {
        for (index, port) in self.ports.iter().enumerate() {
            if port.interrupts() {
                self.interrupt_status |= 1 << index;
            }
        }
        self.interrupt_status != 0 && self.control & GHC_INTERRUPTS != 0
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> HbaState {
        let Hba { control, interrupt_status, ports } = self;
        HbaState {
            control: *control,
            interrupt_status: *interrupt_status,
            ports: ports.iter().map(Port::save).collect(),
        }
    }

    /// Takes over a state of as many ports.
    pub fn restore(&mut self, state: &HbaState) -> Result<(), String> {
        let HbaState { control, interrupt_status, ports } = state;
        if ports.len() != PORTS {
            return Err(format!("it has {} ports, not {PORTS}", ports.len()));
        }
        self.control = GHC_AHCI | control & GHC_INTERRUPTS;
        self.interrupt_status = *interrupt_status;
        for (port, state) in self.ports.iter_mut().zip(ports) {
            port.restore(state);
        }
        Ok(())
    }
}
