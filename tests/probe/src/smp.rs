//! smp
#[unsafe(no_mangle)]
extern "C" fn probe_ap_main(_slot: u32) -> ! { loop { crate::cpu::idle_any() } }
