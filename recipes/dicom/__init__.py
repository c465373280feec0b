"""DICOM: series as volumes, contours and segmentations as label maps, import for training, and DICOM-SEG output."""
