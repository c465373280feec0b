"""Four lung CTs with the contour of the tumour, from the package pycerr.

Data: radiomics phantom of Lambin et al. (CancerData 2016, doi 10.17195/candat.2016.08.1), CC BY-NC 3.0: four patients,
cropped to one lung, each with an RTSTRUCT whose GTV-1 a radiotherapist drew. Not for commercial use; only the files are
read, the package itself (GPL) is not imported.
"""

from __future__ import annotations

from pathlib import Path

from ssmvision.recipes.study.packages import check_digest, package_folder

__all__ = ["write_lungs"]

INSTALL = "pycerr==2.5.1"
SHA256 = "451f83efc40c704ead682dce1def29a857d359b3c46d876acf18c198bcfe589f"


def write_lungs(root: Path) -> Path:
    """Imports the four patients as an nnU-Net raw folder with the label "tumour".

    Returns:
        The path of dataset.json.

    Raises:
        UserError: pycerr is missing or its files differ.
    """
    from ssmvision.recipes.dicom.import_config import ImportConfig
    from ssmvision.recipes.dicom.importing import run

    folder = package_folder("cerr", INSTALL, "datasets", "radiomics_phantom_dicom")
    check_digest(sorted(folder.rglob("*.dcm")), SHA256, INSTALL)
    return Path(run(ImportConfig(source=folder, out=root, roi={"tumour": "GTV-1"})))
