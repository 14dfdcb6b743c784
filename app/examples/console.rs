//! A console window with no machine behind it: a moving picture on its screen, and a line on standard output for all
//! that a guest would get. For looking at the window, driving it with xdotool, and measuring what drawing costs.
//!
//!     cargo run -p orangery --example console -- --mode 1920x1080 --rate 60 --tablet

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Parser;
use orangery::console::{self, ConsoleSession, Options, Renderer, Request};
use orangery::theme::Appearance;
use vmm_core::backend::display::{Cursor, CursorImage, Frame, Mode, Rect, Screen};
use vmm_core::backend::input::{InputEvent, InputPort};
use vmm_core::vm::{Lifecycle, Problem, VmCommand, VmEvent};

#[derive(Parser)]
struct Args {
    /// The guest's first mode.
    #[arg(long, default_value = "1280x800", value_parser = size)]
    mode: Mode,
    /// Pictures a second; 0 draws one and stays idle.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Change only a square of this side in each picture.
    #[arg(long)]
    square: Option<u32>,
    /// The guest has an absolute pointer, and shows a pointer of its own there.
    #[arg(long)]
    tablet: bool,
    #[arg(long)]
    cursor: bool,
    /// Follow the window's size, as a guest with a driver does.
    #[arg(long)]
    follow: bool,
    /// The screen stays off.
    #[arg(long)]
    off: bool,
    /// A problem to show.
    #[arg(long)]
    problem: Vec<String>,
    /// A disc in the drive.
    #[arg(long)]
    disc: Option<std::path::PathBuf>,
    #[arg(long)]
    renderer: Option<Renderer>,
    #[arg(long)]
    fullscreen: bool,
    #[arg(long)]
    light: bool,
    #[arg(long)]
    text_scale: Option<u32>,
    /// Where screenshots go.
    #[arg(long)]
    screenshots: Option<std::path::PathBuf>,
    /// Print the pictures drawn and the CPU time used, once a second.
    #[arg(long)]
    stats: bool,
    /// Ask for the window again so many seconds after it was closed with the machine kept running.
    #[arg(long)]
    raise_after: Option<u64>,
    /// The guest powers off after so many seconds.
    #[arg(long)]
    stop_after: Option<u64>,
}

fn size(text: &str) -> Result<Mode, String> {
    let (width, height) = text.split_once('x').ok_or("write it as 1280x800")?;
    let number = |s: &str| s.parse::<u32>().map_err(|e| e.to_string());
    Ok(Mode { width: number(width)?, height: number(height)? })
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let options = Options {
        title: "debian".into(),
        renderer: args.renderer,
        fullscreen: args.fullscreen,
        screenshots: args.screenshots.clone(),
        drives: vec![args.disc.clone()],
        can_keep_running: true,
        appearance: if args.light { Appearance::Light } else { Appearance::Dark },
        text_scale: args.text_scale,
    };
    console::run(options, move |waker| {
        let taken = Arc::new(AtomicU64::new(0));
        let (count, wake) = (taken.clone(), waker.clone());
        let screen = Screen::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            wake.wake();
        });
        let (keyboard, pointer) = (InputPort::new()?, InputPort::new()?);
        pointer.claim(args.tablet);
        keyboard.claim(args.tablet);
        let (tell, events) = mpsc::channel();
        let (ask, requests) = mpsc::channel();
        tell.send(VmEvent::State(Lifecycle::Running))?;
        for message in &args.problem {
            let problem = Problem { source: "disk 0".into(), message: message.clone(), paused: false };
            tell.send(VmEvent::Problem(problem))?;
        }
        print_input("keyboard", keyboard.clone());
        print_input("pointer", pointer.clone());
        let guest = Guest {
            mode: Arc::new((AtomicU32::new(args.mode.width), AtomicU32::new(args.mode.height))),
            running: Arc::new(AtomicBool::new(true)),
        };
        if !args.off {
            guest.clone().draw(screen.clone(), args.rate, args.square, args.cursor);
        }
        if args.stats {
            guest_thread(move || print_stats(&taken));
        }
        if let Some(seconds) = args.raise_after {
            let waker = waker.clone();
            guest_thread(move || {
                std::thread::sleep(Duration::from_secs(seconds));
                let _ = ask.send(Request::Raise);
                waker.wake();
                std::thread::park();
            });
        }
        if let Some(seconds) = args.stop_after {
            let (tell, waker) = (tell.clone(), waker.clone());
            guest_thread(move || {
                std::thread::sleep(Duration::from_secs(seconds));
                let _ = tell.send(VmEvent::State(Lifecycle::Stopped));
                waker.wake();
            });
        }
        let command = move |command: VmCommand| {
            println!("command {command:?}");
            let state = |state| {
                let _ = tell.send(VmEvent::State(state));
                waker.wake();
            };
            match command {
                VmCommand::Pause => {
                    guest.running.store(false, Ordering::Relaxed);
                    state(Lifecycle::Paused);
                }
                VmCommand::Resume => {
                    guest.running.store(true, Ordering::Relaxed);
                    state(Lifecycle::Running);
                }
                VmCommand::PowerOff | VmCommand::ShutDown => state(Lifecycle::Stopped),
                VmCommand::ResizeDisplay { width, height } if args.follow => {
                    guest.mode.0.store(width, Ordering::Relaxed);
                    guest.mode.1.store(height, Ordering::Relaxed);
                }
                VmCommand::ChangeMedium { path: Some(path), .. } => {
                    std::fs::metadata(&path).map_err(|e| format!("could not insert {}: {e}", path.display()))?;
                }
                _ => {}
            }
            Ok(())
        };
        Ok(ConsoleSession {
            screen,
            keyboard,
            pointer,
            serial: None,
            command: Box::new(command),
            type_text: Box::new(|text| {
                println!("text {text:?}");
                Ok(())
            }),
            save: None,
            past: None,
            events,
            requests,
        })
    })
}

#[derive(Clone)]
struct Guest {
    mode: Arc<(AtomicU32, AtomicU32)>,
    running: Arc<AtomicBool>,
}

/// How many pictures the moving one has: painted once, so that the guest's own work is little.
const PICTURES: usize = 4;

impl Guest {
    /// Draws for ever: stripes that move, a frame of single pixels (to see blur and clipping), text-like noise.
    fn draw(self, screen: Screen, rate: u32, square: Option<u32>, cursor: bool) {
        guest_thread(move || {
            let mut sink = screen.sink();
            let mut mode = Mode { width: 0, height: 0 };
            let mut pixels = Vec::new();
            let mut n = 0u32;
            let start = Instant::now();
            loop {
                let now =
                    Mode { width: self.mode.0.load(Ordering::Relaxed), height: self.mode.1.load(Ordering::Relaxed) };
                let fresh = now != mode;
                if fresh {
                    mode = now;
                    pixels = vec![
                        vec![0; mode.width as usize * mode.height as usize * 4];
                        if square.is_some() { 1 } else { PICTURES }
                    ];
                    for (i, picture) in pixels.iter_mut().enumerate() {
                        paint(picture, mode, Rect::full(mode), i as u32 * 8);
                    }
                    sink.mode(0, Some(mode));
                }
                if fresh || rate > 0 && self.running.load(Ordering::Relaxed) {
                    n += 1;
                    let damage = match square {
                        Some(side) if !fresh => {
                            Rect { x: n * 8 % mode.width, y: n * 4 % mode.height, width: side, height: side }
                        }
                        _ => Rect::full(mode),
                    };
                    let count = pixels.len();
                    let picture = &mut pixels[n as usize % count];
                    if square.is_some() {
                        paint(picture, mode, damage.clip(mode), n);
                    }
                    sink.present(0, Frame { mode, stride: mode.width as usize * 4, pixels: picture }, damage);
                }
                if cursor {
                    let t = start.elapsed().as_secs_f64();
                    let (x, y) = if rate > 0 { (t.cos() * 100.0, t.sin() * 100.0) } else { (0.0, 0.0) };
                    sink.cursor(0, arrow(mode.width as i32 / 2 + x as i32, mode.height as i32 / 2 + y as i32));
                }
                if rate == 0 {
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
                let next = start + Duration::from_secs_f64(f64::from(n) / f64::from(rate));
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
    }
}

fn paint(pixels: &mut [u8], mode: Mode, rect: Rect, n: u32) {
    for y in rect.y..rect.y + rect.height {
        let row = &mut pixels[(y * mode.width * 4) as usize..][..mode.width as usize * 4];
        for x in rect.x..rect.x + rect.width {
            let edge = x == 0 || y == 0 || x + 1 == mode.width || y + 1 == mode.height;
            let grid = (x % 100 == 0 || y % 100 == 0) && (x + y) % 2 == 0;
            let pixel = match (edge, grid) {
                (true, _) => [0, 0, 255, 0],
                (_, true) => [255, 255, 255, 0],
                _ => [(x + n * 4) as u8, (y / 2) as u8, ((x ^ y) / 4) as u8, 0],
            };
            row[x as usize * 4..][..4].copy_from_slice(&pixel);
        }
    }
}

/// A triangle, half transparent at its edge, its hot spot at the tip.
fn arrow(x: i32, y: i32) -> Cursor {
    let side = 24u32;
    let pixel = |i: u32| match (i % side, i / side) {
        (x, y) if x > y => [0, 0, 0, 0],
        (x, y) if x == y || x == 0 || y == side - 1 => [255, 255, 255, 128],
        _ => [40, 40, 220, 255],
    };
    let pixels = (0..side * side).flat_map(pixel).collect();
    let image = Some(Arc::new(CursorImage { width: side, height: side, pixels }));
    Cursor { visible: true, x, y, hot_x: 0, hot_y: 0, image }
}

fn print_input(name: &'static str, port: InputPort) {
    guest_thread(move || {
        loop {
            while let Some(event) = port.receive() {
                if event != InputEvent::SYN {
                    println!("{name} kind {} code {} value {}", event.kind, event.code, event.value);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

fn print_stats(taken: &AtomicU64) {
    let mut last = (0, Duration::ZERO);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = (taken.load(Ordering::Relaxed), cpu());
        let (pictures, cpu) = (now.0 - last.0, now.1 - last.1);
        println!("stats {pictures} pictures/s, CPU {:.1} %", cpu.as_secs_f64() * 100.0);
        last = now;
    }
}

/// The CPU time of the window and what draws it: of all threads but this program's own, which play the guest
/// (proc(5): fields 14 and 15 of stat, in hundredths of a second).
fn cpu() -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let ticks: u64 = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .filter(|stat| !stat.contains("(guest"))
        .map(|stat| {
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            [11, 12].iter().filter_map(|&n| fields.get(n)?.parse::<u64>().ok()).sum::<u64>()
        })
        .sum();
    Duration::from_millis(ticks * 10)
}

fn guest_thread(work: impl FnOnce() + Send + 'static) {
    if let Err(e) = std::thread::Builder::new().name("guest".into()).spawn(work) {
        eprintln!("could not start a thread of the guest: {e}");
    }
}
