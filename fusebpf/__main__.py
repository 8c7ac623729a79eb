"""`python -m fusebpf` is the command `fusebpf`."""

from fusebpf.cli import main

if __name__ == "__main__":
    main()
