//! virtio-input (virtio 1.2 §5.8) and echoes of input: `inputecho`, `ps2echo`.

use crate::drivers::i8042::{self, command, config};
use crate::drivers::input::{Input, event, select};
use crate::drivers::virtio::kind;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::{ensure, println, text, time};

/// The escape key, whose release ends an echo: evdev code, and set 1 scan code.
const KEY_ESC: u16 = 1;
const SCAN_ESC_RELEASE: u8 = 0x81;
/// The other side may be a busy computer: this only ends what hangs.
const ECHO_SECONDS: u64 = 300;
const MAX_DEVICES: usize = 4;
const ABS_X: u16 = 0;

/// Name, ids and event codes make sense; the event queue takes buffers.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::INPUT).nth(index).ok_or(Failure::Absent)?;
    let input = Input::open(function)?;
    let name = input.name()?;
    ensure!(!name.as_str().is_empty(), "the device has no name");
    ensure!(input.query(select::IDS, 0)? >= 8, "the device has no ids");
    let (ids, more) = (input.word(0)?, input.word(1)?);
    let [keys, relative, absolute] = [event::KEY, event::REL, event::ABS].map(|kind| input.codes(kind));
    let (keys, relative, absolute) = (keys?, relative?, absolute?);
    ensure!(keys + relative + absolute > 0, "the device '{name}' can send no event");
    ensure!(input.query(0x7f, 0)? == 0, "an unknown selector has a size");
    if absolute > 0 {
        let axis = input.axis(ABS_X)?;
        ensure!(axis.is_some_and(|(low, high)| high > low), "the range of the X axis is {axis:?}");
    }
    input.device.reset()?;
    Ok(text!(
        "'{name}' {:04x}:{:04x}:{:04x}, {keys} keys, {relative} relative and {absolute} absolute axes",
        ids & 0xffff,
        ids >> 16,
        more & 0xffff
    ))
}

/// Prints the events of all input devices until the escape key is released.
pub fn echo(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || !machine.words.has("inputecho") {
        return Err(Failure::Absent);
    }
    let mut inputs: [Option<Input>; MAX_DEVICES] = [const { None }; MAX_DEVICES];
    for (slot, function) in inputs.iter_mut().zip(machine.pci.virtio(kind::INPUT)) {
        *slot = Some(Input::open(function)?);
    }
    println!("probe: input echo ready");
    let mut events = 0u32;
    let ended = time::wait_for(ECHO_SECONDS * 1_000_000, || {
        let mut end = false;
        for (device, input) in inputs.iter_mut().flatten().enumerate() {
            while let Some(event) = input.poll() {
                events += 1;
                event.print(device);
                end |= event.kind == event::KEY && event.code == KEY_ESC && event.value == 0;
            }
        }
        end
    });
    ensure!(ended, "the escape key was not released within {ECHO_SECONDS} s; {events} events");
    Ok(text!("{events} events"))
}

/// Prints the bytes of the PS/2 keyboard and mouse until the escape key is released.
pub fn ps2_echo(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || !machine.words.has("ps2echo") {
        return Err(Failure::Absent);
    }
    i8042::drain();
    i8042::command(command::ENABLE_KEYBOARD);
    i8042::command(command::ENABLE_AUX);
    i8042::configure(config::TRANSLATE);
    i8042::write(0xf4);
    i8042::write_aux(0xf4);
    time::sleep_micros(20_000);
    i8042::drain();
    println!("probe: ps2 echo ready");
    let mut bytes = 0u32;
    let ended = time::wait_for(ECHO_SECONDS * 1_000_000, || {
        let mut end = false;
        while let Some(byte) = i8042::poll() {
            bytes += 1;
            println!("ps2 {} {:02x}", if byte.aux { "mouse" } else { "keyboard" }, byte.value);
            end |= !byte.aux && byte.value == SCAN_ESC_RELEASE;
        }
        end
    });
    ensure!(ended, "the escape key was not released within {ECHO_SECONDS} s; {bytes} bytes");
    Ok(text!("{bytes} bytes"))
}
