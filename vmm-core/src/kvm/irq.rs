//! Interrupts: lines into the in-kernel PICs and I/O APIC, and message-signalled ones through irqfds.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{KvmError, tried};
use crate::hw::{IrqLine, MsiMessage, MsiRoute};

/// I/O APIC pins; MSI routes come after them.
const PINS: u32 = 24;

/// A line into the interrupt controllers.
pub struct GsiLine {
    vm: Arc<VmFd>,
    gsi: u32,
    level: AtomicBool,
}

impl GsiLine {
    pub(super) fn new(vm: Arc<VmFd>, gsi: u32) -> GsiLine {
        GsiLine { vm, gsi, level: AtomicBool::new(false) }
    }
}

impl IrqLine for GsiLine {
    fn set(&self, level: bool) {
        if self.level.swap(level, Ordering::AcqRel) != level {
            // The line exists, so the kernel takes it.
            let _ = self.vm.set_irq_line(self.gsi, level);
        }
    }
}

/// The machine's interrupt routing table.
pub(super) struct Irqs {
    vm: Arc<VmFd>,
    /// MSI routes by GSI - PINS; `None` is free.
    routes: Mutex<Vec<Option<MsiMessage>>>,
}

impl Irqs {
    pub(super) fn new(vm: Arc<VmFd>) -> Irqs {
        Irqs { vm, routes: Mutex::default() }
    }

    /// Tells the kernel the table.
    pub(super) fn commit(&self) -> io::Result<()> {
        self.set_routing(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_routing(&self, routes: &[Option<MsiMessage>]) -> io::Result<()> {
        let mut entries = Vec::with_capacity(40 + routes.len());
        let mut chip = |gsi: u32, irqchip: u32, pin: u32| {
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip.irqchip = irqchip;
            entry.u.irqchip.pin = pin;
            entries.push(entry);
        };
        for gsi in 0..PINS {
            match gsi {
                0..8 => chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
                8..16 => chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
                _ => {}
            }
            // The PIT is wired to pin 2; nothing else is on it, for IRQ 2 is the PICs' cascade.
            match gsi {
                0 => chip(gsi, KVM_IRQCHIP_IOAPIC, 2),
                2 => {}
                _ => chip(gsi, KVM_IRQCHIP_IOAPIC, gsi),
            }
        }
        for (i, message) in routes.iter().enumerate() {
            let Some(message) = message else { continue };
            let mut entry =
                kvm_irq_routing_entry { gsi: PINS + i as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            entries.push(entry);
        }
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }

    pub(super) fn msi_route(self: Arc<Irqs>) -> io::Result<Arc<dyn MsiRoute>> {
        let index = {
            let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            let free = routes.iter().position(Option::is_none);
            let index = free.unwrap_or(routes.len());
            if free.is_none() {
                routes.push(None);
            }
            routes[index] = Some(MsiMessage { address: 0, data: 0 });
            index
        };
        let gsi = PINS + index as u32;
        let wired = EventFd::new(EFD_NONBLOCK).and_then(|bell| {
            self.vm.register_irqfd(&bell, gsi)?;
            Ok(bell)
        });
        match wired {
            Ok(bell) => Ok(Arc::new(IrqfdRoute { irqs: self, index, bell })),
            Err(error) => {
                self.routes.lock().unwrap_or_else(PoisonError::into_inner)[index] = None;
                Err(error)
            }
        }
    }
}

/// A vector whose message the kernel sends when the eventfd is written.
struct IrqfdRoute {
    irqs: Arc<Irqs>,
    index: usize,
    bell: EventFd,
}

impl MsiRoute for IrqfdRoute {
    fn set(&self, message: MsiMessage) -> io::Result<()> {
        let mut routes = self.irqs.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if routes[self.index].replace(message) == Some(message) {
            return Ok(());
        }
        self.irqs.set_routing(&routes)
    }

    fn trigger(&self) {
        // The counter is read by the kernel at once; it can't be full.
        let _ = self.bell.write(1);
    }
}

impl Drop for IrqfdRoute {
    fn drop(&mut self) {
        let _ = self.irqs.vm.unregister_irqfd(&self.bell, PINS + self.index as u32);
        self.irqs.routes.lock().unwrap_or_else(PoisonError::into_inner)[self.index] = None;
    }
}

/// PICs, I/O APIC and PIT, as the kernel gives them.
pub struct ChipState {
    pub(super) chips: [kvm_irqchip; 3],
    pub(super) pit: kvm_pit_state2,
}

impl ChipState {
    pub(super) fn get(vm: &VmFd) -> Result<ChipState, KvmError> {
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            tried("could not read an interrupt controller", vm.get_irqchip(chip))?;
        }
        let pit = tried("could not read the timer", vm.get_pit2())?;
        Ok(ChipState { chips, pit })
    }

    pub(super) fn set(&self, vm: &VmFd) -> Result<(), KvmError> {
        for chip in &self.chips {
            tried("could not set an interrupt controller", vm.set_irqchip(chip))?;
        }
        tried("could not set the timer", vm.set_pit2(&self.pit))
    }
}
