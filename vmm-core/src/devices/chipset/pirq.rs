//! The interrupt router of the ICH9 (§5.8.6): the INTx pins of all functions share eight lines, PIRQ A to H, which
//! reach I/O APIC inputs 16 to 23 and, where the guest routes them so, the PIC, there beside the devices whose interrupts
//! are fixed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::hw::IrqLine;

/// In a routing register: not routed to the PIC (ICH9 §13.1.17).
pub(super) const OFF: u8 = 0x80;
/// The first I/O APIC input of the eight.
const FIRST_GSI: u32 = 16;
/// The PICs' interrupts.
const ISA_IRQS: usize = 16;
/// The PIC interrupts that a routing register may name (§13.1.17).
const PIC_IRQS: [u8; 11] = [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// The router.
pub struct Pirq {
    lines: Vec<Arc<dyn IrqLine>>,
    state: Mutex<State>,
}

struct State {
    /// How many sources assert each PIRQ.
    asserted: [usize; 8],
    /// How many devices of their own assert each of interrupts 0 to 15.
    fixed: [usize; ISA_IRQS],
    /// The routing registers.
    routes: [u8; 8],
}

impl State {
    /// Whether PIC interrupt `irq` is asserted: by a device of its own, or by a PIRQ that is routed there.
    fn pic_level(&self, irq: u8) -> bool {
        let fixed = self.fixed.get(usize::from(irq)).is_some_and(|&asserted| asserted > 0);
        fixed || self.routes.iter().zip(self.asserted).any(|(&route, asserted)| route == irq && asserted > 0)
    }
}

impl Pirq {
    /// A router that drives interrupts 0 to 23, which `gsi` makes.
    pub fn new(gsi: impl Fn(u32) -> Arc<dyn IrqLine>) -> Arc<Pirq> {
        let state = State { asserted: [0; 8], fixed: [0; ISA_IRQS], routes: [OFF; 8] };
        Arc::new(Pirq { lines: (0..FIRST_GSI + 8).map(gsi).collect(), state: Mutex::new(state) })
    }

    /// Which PIRQ (0 is A) a pin (0 is INTA#) of a slot is wired to: slots 0 to 24 share E to H in turn, the
    /// chipset's own use A to D.
    pub fn index(slot: u8, pin: u8) -> u8 {
        if slot <= 24 { 4 + (slot.wrapping_add(pin) & 3) } else { pin & 3 }
    }

    /// The I/O APIC input of a slot's pin, for the tables that tell the guest.
    pub fn gsi(slot: u8, pin: u8) -> u32 {
        FIRST_GSI + u32::from(Pirq::index(slot, pin))
    }

    /// A line for one function's pin (0 is INTA#). Each function has one of its own.
    pub fn line(self: &Arc<Self>, slot: u8, pin: u8) -> Arc<dyn IrqLine> {
        self.source(Wire::Pirq(usize::from(Pirq::index(slot, pin))))
    }

    /// A line for a device whose interrupt is one of 0 to 15, always. A PIRQ may come beside it.
    pub fn fixed(self: &Arc<Self>, irq: u8) -> Arc<dyn IrqLine> {
        debug_assert!(usize::from(irq) < ISA_IRQS);
        self.source(Wire::Fixed(irq))
    }

    fn source(self: &Arc<Self>, wire: Wire) -> Arc<dyn IrqLine> {
        Arc::new(Source { router: self.clone(), wire, level: AtomicBool::new(false) })
    }

    /// Takes over the eight routing registers.
    pub(super) fn set_routes(&self, registers: &[u8]) {
        let mut state = lock(&self.state);
        let before = state.routes;
        for (route, &register) in state.routes.iter_mut().zip(registers) {
            // A reserved interrupt number is as good as off.
            *route = if PIC_IRQS.contains(&register) { register } else { OFF };
        }
        for &irq in PIC_IRQS.iter().filter(|irq| before.contains(irq) || state.routes.contains(irq)) {
            self.lines[usize::from(irq)].set(state.pic_level(irq));
        }
    }

    fn count(&self, wire: Wire, source: &AtomicBool, level: bool) {
        let mut state = lock(&self.state);
        if source.swap(level, Ordering::AcqRel) == level {
            return;
        }
        let count = match wire {
            Wire::Pirq(index) => &mut state.asserted[index],
            Wire::Fixed(irq) => &mut state.fixed[usize::from(irq)],
        };
        *count = if level { *count + 1 } else { count.saturating_sub(1) };
        if *count != usize::from(level) {
            return;
        }
        let irq = match wire {
            Wire::Pirq(index) => {
                self.lines[FIRST_GSI as usize + index].set(level);
                state.routes[index]
            }
            Wire::Fixed(irq) => irq,
        };
        if irq != OFF {
            self.lines[usize::from(irq)].set(state.pic_level(irq));
        }
    }
}

/// What a source is connected to.
#[derive(Debug, Clone, Copy)]
enum Wire {
    /// PIRQ A is 0.
    Pirq(usize),
    /// An interrupt below 16.
    Fixed(u8),
}

/// One function's pin, or one device's interrupt.
struct Source {
    router: Arc<Pirq>,
    wire: Wire,
    /// Changed under the router's lock only.
    level: AtomicBool,
}

impl IrqLine for Source {
    fn set(&self, level: bool) {
        if self.level.load(Ordering::Acquire) != level {
            self.router.count(self.wire, &self.level, level);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::FakeLine;

    fn router() -> (Vec<FakeLine>, Arc<Pirq>) {
        let lines: Vec<FakeLine> = (0..24).map(|_| FakeLine::default()).collect();
        let pirq = Pirq::new(|gsi| Arc::new(lines[gsi as usize].clone()) as Arc<dyn IrqLine>);
        (lines, pirq)
    }

    #[test]
    fn a_shared_line_stays_asserted_until_its_last_source_lets_go() {
        let (lines, pirq) = router();
        let (a, b) = (pirq.line(1, 0), pirq.line(5, 0));
        assert_eq!(Pirq::gsi(1, 0), 21);
        a.set(true);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(lines[21].level());
        b.set(false);
        assert!(!lines[21].level());
        assert_eq!(lines[21].edges(), 1);
        b.set(true);
        drop(b);
        assert!(!lines[21].level());
    }

    #[test]
    fn two_pirqs_on_one_pic_interrupt_are_ored() {
        let (lines, pirq) = router();
        pirq.set_routes(&[10, 10, 11, OFF, OFF, OFF, OFF, 2]);
        let (a, b) = (pirq.line(31, 0), pirq.line(31, 1));
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(lines[10].level() && lines[17].level() && !lines[16].level());
        pirq.set_routes(&[10, 11, OFF, OFF, OFF, OFF, OFF, OFF]);
        assert!(!lines[10].level() && lines[11].level());
        b.set(false);
        assert!(!lines[11].level());
        // Interrupt 2 is the cascade: never driven.
        pirq.line(3, 0).set(true);
        assert_eq!(lines[2].edges(), 0);
    }

    #[test]
    fn a_pirq_and_a_device_of_its_own_on_one_interrupt_are_ored() {
        let (lines, pirq) = router();
        pirq.set_routes(&[9, OFF, OFF, OFF, OFF, OFF, OFF, OFF]);
        let (function, sci) = (pirq.line(31, 0), pirq.fixed(9));
        sci.set(true);
        function.set(true);
        function.set(false);
        assert!(lines[9].level(), "the device still asserts it");
        function.set(true);
        sci.set(false);
        assert!(lines[9].level(), "the function still asserts it");
        // A route that goes away takes nothing from the device.
        sci.set(true);
        pirq.set_routes(&[OFF; 8]);
        assert!(lines[9].level());
        drop(sci);
        assert_eq!((lines[9].level(), lines[9].edges(), lines[16].level()), (false, 1, true));
    }

    #[test]
    fn slots_are_swizzled_as_the_tables_say() {
        let gsis: Vec<u32> = [(0, 0), (1, 0), (2, 3), (24, 1), (25, 0), (31, 3)].map(|(s, p)| Pirq::gsi(s, p)).into();
        assert_eq!(gsis, [20, 21, 21, 21, 16, 19]);
    }
}
