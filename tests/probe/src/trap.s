# Interrupt and exception entry at CPL 0; Intel syntax. As short as possible: CPL 0 may be interpreted.

.section .text
.code64

# 256 stubs of 16 bytes each; the frame then is: vector, error code, rip, cs, rflags, rsp, ss.
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0                          # no error code of its own
    .endif
    .byte 0x68                      # push imm32
    .long vector
    jmp trap_entry
    .set vector, vector + 1
.endr

.balign 16
trap_entry:
    push rax
    mov eax, [rsp + 8]
    cmp eax, 32
    jb exception
    lock inc dword ptr [irq_counts + rax * 4]
    lock inc dword ptr [irq_total]
    cmp eax, 48
    jb pic_eoi
    cmp eax, 255
    je 1f                           # the spurious vector gets no EOI
    mov eax, 0xfee000b0             # local APIC EOI
    mov dword ptr [rax], 0
1:  pop rax
    add rsp, 16
    iretq

pic_eoi:
    cmp eax, 40
    mov al, 0x20
    jb 1f
    out 0xa0, al
1:  out 0x20, al
    pop rax
    add rsp, 16
    iretq

# Vector 0x80, for CPL 3: wait for an interrupt unless one came since eax = irq_total was read.
# The comparison is safe because the gate cleared IF, and `sti` takes effect only after the `hlt` began.
.balign 16
.global idle_gate
idle_gate:
    cmp eax, [irq_total]
    jne 1f
    sti
    hlt
1:  iretq

# Vector 0x81, for CPL 3: a triple fault, the last way to reset a machine.
.balign 16
.global triple_fault_gate
triple_fault_gate:
    push 0
    push 0
    lidt [rsp]
    ud2

# An exception is reported by Rust at CPL 3, on a fresh stack; there is no way back.
exception:
    mov [fault_record], rax
    mov rax, [rsp + 16]
    mov [fault_record + 8], rax     # error code
    mov rax, [rsp + 24]
    mov [fault_record + 16], rax    # rip
    mov rax, [rsp + 48]
    mov [fault_record + 24], rax    # rsp
    mov rax, cr2
    mov [fault_record + 32], rax
    mov rax, [rsp + 32]
    mov [fault_record + 40], rax    # cs
    push 0x1b
    lea rax, [rip + stack_top]
    push rax
    push 0x3202
    push 0x23
    lea rax, [rip + fault_report_entry]
    push rax
    iretq

fault_report_entry:
    call probe_fault
    ud2

.section .bss
.balign 16
.global irq_counts, irq_total, fault_record
irq_counts: .skip 256 * 4
irq_total: .skip 8
fault_record: .skip 48
