//! The PCI host bridge's routing: configuration mechanism #1 (PCI 3.0 §3.2.2.3.2), ECAM, and the windows of all BARs,
//! which follow what the guest writes.

use std::sync::{Arc, Mutex, Weak};

use super::config::{BarKind, lock};
use super::{ConfigSpace, PciDevice};
use crate::hw::{Action, Bus, BusDevice};

/// A function's place on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Slot, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// A function.
    pub const fn new(device: u8, function: u8) -> PciAddress {
        PciAddress { device, function }
    }

    /// Its number on the bus, as configuration mechanisms count functions.
    pub fn index(self) -> usize {
        usize::from(self.device) << 3 | usize::from(self.function)
    }
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// Bus 0.
pub struct PciRoot {
    memory: Arc<Bus>,
    ports: Arc<Bus>,
    state: Mutex<State>,
    me: Weak<PciRoot>,
}

struct State {
    functions: Vec<Option<Arc<dyn PciDevice>>>,
    windows: Vec<Window>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Window {
    function: usize,
    bar: usize,
    kind: BarKind,
    start: u64,
    len: u64,
}

/// Routes one BAR's accesses.
struct BarTarget {
    device: Arc<dyn PciDevice>,
    bar: usize,
}

impl BusDevice for BarTarget {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read_bar(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.device.write_bar(self.bar, offset, data)
    }
}

impl PciRoot {
    /// An empty bus whose BARs appear on these address spaces.
    pub fn new(memory: Arc<Bus>, ports: Arc<Bus>) -> Arc<PciRoot> {
        let state = State { functions: (0..256).map(|_| None).collect(), windows: Vec::new() };
        Arc::new_cyclic(|me| PciRoot { memory, ports, state: Mutex::new(state), me: me.clone() })
    }

    /// Puts a function in its place, which is free.
    pub fn add(&self, address: PciAddress, device: Arc<dyn PciDevice>) {
        lock(&self.state).functions[address.index()] = Some(device);
    }

    /// All functions, in order.
    pub fn functions(&self) -> Vec<(PciAddress, Arc<dyn PciDevice>)> {
        let address = |i: usize| PciAddress::new((i >> 3) as u8, (i & 7) as u8);
        let state = lock(&self.state);
        state.functions.iter().enumerate().filter_map(|(i, f)| Some((address(i), f.clone()?))).collect()
    }

    fn function(&self, index: usize) -> Option<Arc<dyn PciDevice>> {
        lock(&self.state).functions[index].clone()
    }

    /// Reads configuration space of a bus/device/function; ones where nobody is.
    pub fn read_config(&self, bdf: usize, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if bdf < 256
            && let Some(device) = self.function(bdf)
        {
            device.read_config(offset, data);
        }
    }

    /// Writes configuration space, and moves BARs as it says.
    pub fn write_config(&self, bdf: usize, offset: usize, data: &[u8]) -> Option<Action> {
        let device = self.function(bdf).filter(|_| bdf < 256)?;
        let action = device.write_config(offset, data);
        // Command and BARs are all that moves windows.
        if offset < 0x28 && offset + data.len() > 0x04 {
            self.refresh();
        }
        action
    }

    /// Routes every BAR to where its function's configuration space says, after that changed.
    pub fn refresh(&self) {
        let mut state = lock(&self.state);
        let mut wanted: Vec<Window> = Vec::new();
        for (function, device) in state.functions.iter().enumerate() {
            let Some(device) = device else { continue };
            let config = lock(device.config());
            wanted.extend(windows(function, &config));
        }
        let old = std::mem::take(&mut state.windows);
        for window in old.iter().filter(|w| !wanted.contains(w)) {
            if let Some(device) = state.functions[window.function].clone() {
                self.bus(window.kind).remove(window.start);
                device.bar_moved(window.bar, None);
            }
        }
        for window in wanted {
            let Some(device) = state.functions[window.function].clone() else { continue };
            let mut routed = old.contains(&window);
            if !routed {
                let target = Arc::new(BarTarget { device: device.clone(), bar: window.bar });
                // A window over another one (a BAR being sized) is seen by nobody until it moves on.
                routed = self.bus(window.kind).insert(window.start, window.len, target);
                if routed {
                    device.bar_moved(window.bar, Some(window.start));
                }
            }
            if routed {
                state.windows.push(window);
            }
        }
    }

    fn bus(&self, kind: BarKind) -> &Bus {
        match kind {
            BarKind::Io => &self.ports,
            BarKind::Memory | BarKind::Prefetchable => &self.memory,
        }
    }

    /// The configuration ports 0xcf8 to 0xcff.
    pub fn config_ports(&self) -> Arc<ConfigPorts> {
        Arc::new(ConfigPorts { root: self.me.clone(), address: Mutex::new(0) })
    }

    /// The memory-mapped configuration space of 256 buses.
    pub fn ecam(&self) -> Arc<Ecam> {
        Arc::new(Ecam { root: self.me.clone() })
    }
}

fn windows(function: usize, config: &ConfigSpace) -> Vec<Window> {
    let window = |bar| {
        let (kind, start, len) = config.bar_window(bar)?;
        Some(Window { function, bar, kind, start, len })
    };
    (0..6).filter_map(window).collect()
}

/// Configuration mechanism #1: the address port 0xcf8 and the data ports 0xcfc to 0xcff.
pub struct ConfigPorts {
    root: Weak<PciRoot>,
    address: Mutex<u32>,
}

const ENABLE: u32 = 1 << 31;

impl ConfigPorts {
    /// The address register, for a checkpoint.
    pub fn address(&self) -> u32 {
        *lock(&self.address)
    }

    /// Sets the address register.
    pub fn set_address(&self, address: u32) {
        *lock(&self.address) = address;
    }

    fn target(&self, offset: u64) -> Option<(Arc<PciRoot>, usize, usize)> {
        let address = self.address();
        let root = self.root.upgrade().filter(|_| address & ENABLE != 0)?;
        Some((root, (address >> 8 & 0xffff) as usize, (address & 0xfc) as usize + (offset & 3) as usize))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= 4 {
            if let Some((root, bdf, register)) = self.target(offset) {
                root.read_config(bdf, register, data);
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address().to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        if offset >= 4 {
            let (root, bdf, register) = self.target(offset)?;
            return root.write_config(bdf, register, data);
        }
        if let (0, Ok(bytes)) = (offset, data.try_into()) {
            self.set_address(u32::from_le_bytes(bytes));
        }
        None
    }
}

/// The enhanced configuration access mechanism: 1 MiB a bus, 4 KiB a function (PCI Express 1.1 §7.2.2).
pub struct Ecam {
    root: Weak<PciRoot>,
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(root) = self.root.upgrade() {
            root.read_config((offset >> 12) as usize, (offset & 0xfff) as usize, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.root.upgrade()?.write_config((offset >> 12) as usize, (offset & 0xfff) as usize, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Identity, reg};

    struct Card {
        config: Mutex<ConfigSpace>,
        moves: Mutex<Vec<(usize, Option<u64>)>>,
    }

    impl PciDevice for Card {
        fn config(&self) -> &Mutex<ConfigSpace> {
            &self.config
        }
        fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
            data.fill(bar as u8 * 16 + offset as u8);
        }
        fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Option<Action> {
            None
        }
        fn bar_moved(&self, bar: usize, address: Option<u64>) {
            lock(&self.moves).push((bar, address));
        }
    }

    fn root() -> (Arc<PciRoot>, Arc<Bus>, Arc<Card>) {
        let (memory, ports) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
        let root = PciRoot::new(memory.clone(), ports.clone());
        let identity = Identity { vendor: 1, device: 2, revision: 0, class: [0; 3], subsystem: (0, 0) };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(1, BarKind::Memory, 0x1000);
        let card = Arc::new(Card { config: Mutex::new(config), moves: Mutex::default() });
        root.add(PciAddress::new(3, 0), card.clone());
        assert!(ports.insert(0xcf8, 8, root.config_ports()));
        (root, ports, card)
    }

    #[test]
    fn both_mechanisms_reach_the_same_registers() {
        let (root, ports, _) = root();
        ports.write(0xcf8, &(ENABLE | 3 << 11).to_le_bytes());
        let mut bytes = [0; 2];
        ports.read(0xcfe, &mut bytes);
        assert_eq!(bytes, [2, 0]);
        root.ecam().read(3 << 15 | 2, &mut bytes);
        assert_eq!(bytes, [2, 0]);
        for absent in [0u64, 3 << 15 | 1 << 12, 1 << 20 | 3 << 15] {
            root.ecam().read(absent, &mut bytes);
            assert_eq!(bytes, [0xff; 2], "{absent:#x}");
        }
        root.ecam().read(3 << 15 | 0x100, &mut bytes);
        assert_eq!(bytes, [0xff; 2]);
    }

    #[test]
    fn a_bar_follows_the_guest_and_an_overlap_is_nobodys() {
        let (root, _, card) = root();
        let write = |offset, data: &[u8]| root.write_config(3 << 3, offset, data);
        write(reg::COMMAND, &[2]);
        write(reg::BAR0 + 4, &0xd000_0000u32.to_le_bytes());
        let mut byte = [0];
        root.memory.read(0xd000_0004, &mut byte);
        assert_eq!(byte, [0x14]);
        write(reg::BAR0 + 4, &0xe000_0000u32.to_le_bytes());
        root.memory.read(0xd000_0004, &mut byte);
        assert_eq!(byte, [0xff]);
        write(reg::COMMAND, &[0]);
        assert_eq!(*lock(&card.moves), [(1, Some(0xd000_0000)), (1, None), (1, Some(0xe000_0000)), (1, None)]);
    }
}
