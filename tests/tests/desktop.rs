//! The virtual desktop itself, with X's own example programs.

use orangery_tests::desktop::Desktop;

#[test]
fn a_window_is_seen_typed_into_and_closed() {
    let mut desktop = Desktop::start("desktop-itself", 640, 480).unwrap();
    let mut xev = desktop.command("xev");
    xev.args(["-name", "a test window", "-geometry", "300x200", "-event", "keyboard"]);
    desktop.launch("xev", xev).unwrap();
    let window = desktop.window("a test window").unwrap();
    assert_eq!(window.size().unwrap(), (300, 200));
    assert_eq!(window.screenshot("window").unwrap().width, 300);
    assert_eq!(desktop.screenshot("desktop").unwrap().height, 480);
    window.focus().unwrap();
    window.type_text("k").unwrap();
    let log = desktop.folder().join("xev.log");
    desktop.until("the key", || Ok(std::fs::read_to_string(&log)?.contains("keysym 0x6b, k").then_some(()))).unwrap();
    window.close().unwrap();
    desktop.until("the window's end", || Ok((!desktop.is_busy()).then_some(()))).unwrap();
}
