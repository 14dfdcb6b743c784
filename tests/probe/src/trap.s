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

# What CPL 3 asks of CPL 0 goes through invalid opcodes at known places: software interrupts would be the usual gate,
# but KVM_PVM refuses them at CPL 3.

# extern "C" fn(seen): waits for an interrupt unless one came since irq_total was `seen`.
.global cpu_idle
cpu_idle:
    mov eax, edi
idle_request:
    ud2
    ret

# extern "C" fn() -> !: a triple fault, the last way to reset a machine.
.global cpu_triple_fault
cpu_triple_fault:
triple_fault_request:
    ud2

# The handler of vector 6. The comparison is safe because the gate cleared IF, and `sti` takes effect only after the
# `hlt` began.
.balign 16
.global invalid_opcode
invalid_opcode:
    cmp qword ptr [rsp], offset idle_request
    jne 2f
    add qword ptr [rsp], 2          # go on after the ud2
    cmp eax, [irq_total]
    jne 1f
    sti
    hlt
1:  iretq
2:  cmp qword ptr [rsp], offset triple_fault_request
    jne trap_stubs + 6 * 16
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
