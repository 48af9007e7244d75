"""A window with Moshi in it: its words, a few buttons. The only part of the example that needs macOS.

pip install ../.. pyobjc-framework-Cocoa
python app.py                       # from a terminal, or built into an application by setup.py
"""

from __future__ import annotations

import sys

import objc
from AppKit import (
    NSApp,
    NSApplication,
    NSApplicationActivationPolicyRegular,
    NSBackingStoreBuffered,
    NSButton,
    NSFont,
    NSMakeRect,
    NSScrollView,
    NSTextField,
    NSTextView,
    NSViewHeightSizable,
    NSViewWidthSizable,
    NSWindow,
    NSWindowStyleMaskClosable,
    NSWindowStyleMaskMiniaturizable,
    NSWindowStyleMaskResizable,
    NSWindowStyleMaskTitled,
)
from Foundation import NSObject
from PyObjCTools import AppHelper
from talk import Talk

WIDTH, HEIGHT = 560, 380
STYLE = (
    NSWindowStyleMaskTitled | NSWindowStyleMaskClosable | NSWindowStyleMaskMiniaturizable | NSWindowStyleMaskResizable
)


class AppDelegate(NSObject):
    """Buttons call the talk; what the talk tells comes back to the main thread, where windows live."""

    def applicationDidFinishLaunching_(self, notification):
        self.talk = Talk(lambda kind, **fields: AppHelper.callAfter(self.told, kind, fields), **model_options())
        frame = NSMakeRect(0, 0, WIDTH, HEIGHT)
        self.window = NSWindow.alloc().initWithContentRect_styleMask_backing_defer_(
            frame, STYLE, NSBackingStoreBuffered, False
        )
        self.window.setTitle_("Moshi")
        view = self.window.contentView()
        self.words = self._words(view)
        self.line = self._line(view)
        self._button(view, "Talk", 10, "talk:")
        self._button(view, "Mute", 110, "mute:")
        self._button(view, "New", 210, "begin:")
        self._button(view, "End", 310, "end:")
        self.window.center()
        self.window.makeKeyAndOrderFront_(None)
        NSApp.activateIgnoringOtherApps_(True)

    def applicationShouldTerminateAfterLastWindowClosed_(self, application):
        return True

    def applicationWillTerminate_(self, notification):
        self.talk.stop()
        self.talk.wait(5)

    def talk_(self, sender):
        self.words.setString_("")
        self.talk.start()

    def mute_(self, sender):
        self.talk.controls.toggle_mute()

    def begin_(self, sender):
        self.talk.controls.restart()

    def end_(self, sender):
        self.talk.stop()

    @objc.python_method
    def told(self, kind, fields):
        if kind == "text":
            storage = self.words.textStorage()
            storage.mutableString().appendString_(fields["text"])
            self.words.scrollRangeToVisible_((storage.length(), 0))
        elif kind == "status":
            step, lag = fields["step_ms"]["p50"], fields["lag_ms"]
            self.line.setStringValue_(f"{fields['seconds']:.0f} s, {step:.0f} ms of 80 per frame, {lag:.0f} ms behind")
        elif kind in ("notice", "state"):
            self.line.setStringValue_(fields.get("text") or fields["state"])

    @objc.python_method
    def _words(self, view):
        scroll = NSScrollView.alloc().initWithFrame_(NSMakeRect(10, 80, WIDTH - 20, HEIGHT - 90))
        scroll.setHasVerticalScroller_(True)
        scroll.setAutoresizingMask_(NSViewWidthSizable | NSViewHeightSizable)
        text = NSTextView.alloc().initWithFrame_(NSMakeRect(0, 0, WIDTH - 20, HEIGHT - 90))
        text.setEditable_(False)
        text.setFont_(NSFont.systemFontOfSize_(16))
        scroll.setDocumentView_(text)
        view.addSubview_(scroll)
        return text

    @objc.python_method
    def _line(self, view):
        line = NSTextField.labelWithString_("")
        line.setFrame_(NSMakeRect(10, 50, WIDTH - 20, 20))
        view.addSubview_(line)
        return line

    @objc.python_method
    def _button(self, view, title, x, action):
        button = NSButton.buttonWithTitle_target_action_(title, self, action)
        button.setFrame_(NSMakeRect(x, 10, 90, 32))
        view.addSubview_(button)


def model_options():
    """The checkpoint to talk with: a folder or short name given as the argument, else moshiko in 4 bits."""
    return {"model": sys.argv[1]} if len(sys.argv) > 1 else {"quantized": 4}


def main():
    application = NSApplication.sharedApplication()
    application.setActivationPolicy_(NSApplicationActivationPolicyRegular)
    delegate = AppDelegate.alloc().init()
    application.setDelegate_(delegate)
    AppHelper.runEventLoop()


if __name__ == "__main__":
    main()
